"""From a microscope field to nuclei."""
