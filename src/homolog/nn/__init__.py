"""Parts of networks shared by methods and tasks."""
