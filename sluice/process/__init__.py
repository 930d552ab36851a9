"""What every process that starts another one needs: how a child begins, what it writes, how it ends."""
