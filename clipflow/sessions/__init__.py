"""Models on runtimes: one module a runtime, one Protocol (base), one table (registry)."""
