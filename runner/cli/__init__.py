"""The command line: thin click commands over the daemon's HTTP API."""
