"""The mapping files, data only; setup.cfg installs this folder as the package ``porter.variants``."""
