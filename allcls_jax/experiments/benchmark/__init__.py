"""What the package takes, side by side with its peers, measured by one command.

`python tools/benchmark.py --out FILE.json` measures all rows that this machine can;
figures go from there into that file, and from that file into tables, and are typed by
nobody.
"""
