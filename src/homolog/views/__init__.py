"""What a method sees: view specifications, views, and how they are made."""
