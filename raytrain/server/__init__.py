"""`raytrain serve`: runs over HTTP and in a browser, with a history that lasts.

It reads storages and starts `raytrain` in processes of their own. It must not train, print, or
import Torch in its own process; Ray only as a client of a cluster's job server, where an address is
given. Storage is the truth; the database is an index of it.
"""
