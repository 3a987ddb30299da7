"""A trained policy, which needs no Ray: its file, its network, acting, evaluation and export."""
