"""What keeps answers coming when something fails: breakers, budgets, rungs. Pure where it decides."""
