"""What this estate adds to GNU Mailman's core; README.md beside this package says what is where."""
