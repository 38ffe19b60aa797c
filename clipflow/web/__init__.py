"""HTTP: one application factory, one router a resource."""
