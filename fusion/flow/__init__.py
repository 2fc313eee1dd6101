"""Flow matching: paths from data to noise, targets and losses, and the solvers that integrate a velocity."""
