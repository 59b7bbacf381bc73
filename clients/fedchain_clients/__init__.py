"""The data owner's side: check what the server asks, sign what leaves the machine."""

# Eagerly: the function and its module share a name, and the function must be the one that stays.
from fedchain_clients.attest import attest
from fedchain_clients.home import OwnerHome

__all__ = ["OwnerHome", "attest"]
