"""How much memory, disk and network a recipe needs, counted from config.json before anything is rented or loaded."""
