"""All that clipflow knows of Jina: the base of our Executors (room), the gateway's door (door), the Flow (launcher)."""
