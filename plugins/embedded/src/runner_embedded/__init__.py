"""Runner plugin: models that come in pip packages."""
