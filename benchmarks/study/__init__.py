"""Does the mask help, and against what? Unlearning real rows with every score, judged at matched forgetting."""
