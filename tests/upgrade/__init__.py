"""Workspaces, clients and stages of older versions beside those of this one."""
