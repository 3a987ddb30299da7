"""A trained policy without Ray: its file, its network, acting, evaluation and export."""
