"""What is installed, and causes of a wrong score in a file."""
