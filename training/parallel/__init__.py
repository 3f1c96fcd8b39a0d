"""The processes that train together: starting them, connecting them, where tables lie."""
