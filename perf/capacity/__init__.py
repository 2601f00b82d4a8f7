"""How many servers a load needs: a simulation of measured servers behind a balancer."""
