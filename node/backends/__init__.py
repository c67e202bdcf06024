"""Ways to keep a container running. `contract` says what a backend must do; each other module is one backend."""
