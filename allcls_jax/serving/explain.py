"""The verb `explain`: which pixels of a cell a model's verdict rests on."""

from collections.abc import Sequence

from allcls_jax.command_line import Parser, run
from allcls_jax.serving import arguments
from allcls_jax.serving.explanation.folder import MAPS_FILE, RECORD_FILE
from allcls_jax.serving.explanation.job import LIMIT, Options, Target, explain
from allcls_jax.serving.explanation.settings import Method, Settings
from allcls_jax.serving.model import open_model
from allcls_jax.serving.out_folder import check_out
from allcls_jax.serving.prediction.inputs import KINDS

_WHAT = f"""Shows which pixels of a cell a model's calibrated log odds rest on: for each
image a picture of the cell beside the cell with its map; a grid of all; and
{RECORD_FILE} with, for each image, the share of the map that lies on the cell. Says
whether the maps change when the model's weights are made random: maps that do not
are not to be trusted. A map tells of the model, not of the disease.

PATH: {KINDS}."""

_EXAMPLE = """allcls explain runs/vgg19/model cells/ --out maps
allcls explain model.zip cell.png --out maps --method integrated_gradients
allcls explain model 'cells/*.bmp' --out maps --method gradcam --block 4 --target ALL"""


def parser() -> Parser:
    """Returns what reads the arguments."""
    made = Parser("explain", _WHAT, _EXAMPLE)
    add = made.add_argument
    arguments.add_model(made)
    arguments.add_paths(made)
    arguments.add_out_folder(made)
    add(
        "--method",
        type=Method,
        choices=[*Method],
        metavar="|".join(Method),
        default=Method.GRADCAM,
        help="default: %(default)s; the last two take long without a GPU",
    )
    add(
        "--block",
        type=int,
        help="of gradcam, gradcam++: the block whose last convolution is looked at, 1 "
        "(fine) to 5 (coarse); default: the network's last",
    )
    add(
        "--target",
        type=Target,
        choices=[*Target],
        metavar="|".join(Target),
        default=Target.DECISION,
        help="class whose log odds are explained (default: the one that it is called)",
    )
    arguments.add_threshold(made)
    add(
        "--steps",
        type=int,
        metavar="N",
        default=Settings().steps,
        help="of integrated_gradients, from black to the image (default: %(default)s)",
    )
    add(
        "--patch",
        type=int,
        metavar="PIXELS",
        help="of occlusion: side of the black square, in pixels of the network's input "
        "(default: an eighth of its side)",
    )
    add(
        "--stride",
        type=int,
        metavar="PIXELS",
        help="of occlusion: by which the square moves (default: half of it)",
    )
    add(
        "--limit",
        type=int,
        metavar="N",
        default=LIMIT,
        help="most images to explain (default: %(default)s)",
    )
    add(
        "--sanity_images",
        type=int,
        metavar="N",
        help="images of the sanity check, 0 to leave it out (default: 4; 2 where the "
        "method is slow)",
    )
    add(
        "--sanity_draws",
        type=int,
        metavar="N",
        help="times that it draws random weights (default: 3; 1 where it is slow)",
    )
    add(
        "--batch_size",
        type=int,
        metavar="N",
        default=4,
        help="images, or squares of occlusion, at once (default: %(default)s)",
    )
    add(
        "--save_maps",
        action="store_true",
        help=f"also write {MAPS_FILE}: float32 maps, image by image",
    )
    add("--overwrite", action="store_true", help="replace an explanation in DIR")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = parser().parse_args(argv)

    def act() -> None:
        options = Options(
            settings=Settings(
                method=args.method,
                block=args.block,
                steps=args.steps,
                patch=args.patch,
                stride=args.stride,
            ),
            target=args.target,
            threshold=args.threshold,
            limit=args.limit,
            sanity_images=args.sanity_images,
            sanity_draws=args.sanity_draws,
            batch_size=args.batch_size,
            save_maps=args.save_maps,
            overwrite=args.overwrite,
        )
        options.check()
        out = args.out.expanduser()
        check_out(out, overwrite=options.overwrite)
        model = open_model(args.model)
        model.self_check()
        explain(model, args.paths, out, options)

    return run(act)
