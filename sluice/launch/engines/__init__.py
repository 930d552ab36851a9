"""What places the services of a run: this machine, Ray or Slurm, behind one port."""
