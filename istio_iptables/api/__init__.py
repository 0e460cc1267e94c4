"""The Python API: what the commands are made of. ``istio_iptables`` itself has its names."""
