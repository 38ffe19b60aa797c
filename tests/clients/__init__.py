"""Our clients, the command line, and the clients that others have published."""
