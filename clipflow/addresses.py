"""Which addresses of hosts may be fetched from; needs nothing but the standard library."""

import ipaddress

_UNICAST = ipaddress.ip_network('2000::/3')
_NAT64 = ipaddress.ip_network('64:ff9b::/96')


def is_public(text: str) -> bool:
    """Whether an address leads to a single host of the internet, also where it only stands for an IPv4 address."""
    address = ipaddress.ip_address(text.partition('%')[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        elif address not in _UNICAST or address.sixtofour is not None:
            return False
    return address.is_global and not address.is_multicast
