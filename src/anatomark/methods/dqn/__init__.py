"""Deep Q-learning agents that walk to landmarks: a baseline."""
