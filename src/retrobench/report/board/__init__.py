"""A leaderboard over several results folders."""
