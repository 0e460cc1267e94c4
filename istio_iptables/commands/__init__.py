"""The subcommands, a module each, imported only when they are asked for."""
