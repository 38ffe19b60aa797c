"""What a backup of a workspace holds, and what is put back; the parts that need no service."""
