"""The only code that touches the machine: namespaces, tables, routes, addresses."""
