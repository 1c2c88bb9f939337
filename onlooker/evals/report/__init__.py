"""Reports: tables, figures and one page that needs nothing else."""
