"""The built-in plugins, one file each. They are found through entry points, as all plugins are."""
