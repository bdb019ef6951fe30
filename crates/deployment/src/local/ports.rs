//! Free ports.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::net::{IpAddr, SocketAddr, TcpListener};

use crate::{Error, Result};

/// An address that nothing listens on now. With port 0 a free port is taken; with another one
/// it is checked.
///
/// Another program can take the port before it is used; whoever then fails to listen is
/// started again and says so.
///
/// # Errors
/// When the port is taken or the address is not one of this machine.
pub fn free_address(host: IpAddr, port: u16) -> Result<SocketAddr> {
    if port != 0 {
        return bind(host, port);
    }
    // What connects to somebody gets a port of its own from the kernel's range, and may keep it for
    // days. A port of that range that is free now may be gone when a server begins to listen that
    // takes seconds to start.
    let (from, to) = FOR_SERVERS;
    let to = to.min(first_of_the_kernel());
    let count = u64::from(to.saturating_sub(from));
    let start = RandomState::new().build_hasher().finish();
    for step in 0..TRIES.min(count) {
        let offset = u16::try_from(start.wrapping_add(step) % count).unwrap_or(0);
        if let Ok(address) = bind(host, from.saturating_add(offset)) {
            return Ok(address);
        }
    }
    bind(host, 0)
}

/// Ports that servers get: the first, and the one behind the last. Few programs have theirs here.
const FOR_SERVERS: (u16, u16) = (20_000, 32_000);
/// So many are tried; each is taken now and then.
const TRIES: u64 = 200;

/// Where the ports begin that the kernel gives to those who connect.
fn first_of_the_kernel() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let first = range.ok().and_then(|range| range.split_whitespace().next()?.parse().ok());
    first.unwrap_or(u16::MAX)
}

fn bind(host: IpAddr, port: u16) -> Result<SocketAddr> {
    let address = SocketAddr::new(host, port);
    let listener =
        TcpListener::bind(address).map_err(|source| Error::Listen { address, source })?;
    listener.local_addr().map_err(|source| Error::Listen { address, source })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn free_ports_are_not_those_of_who_connects() {
        let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let kernel = first_of_the_kernel();
        let found: BTreeSet<_> = (0..20).map(|_| free_address(host, 0).unwrap().port()).collect();
        assert!(found.len() > 10, "{found:?}");
        if kernel > 20_200 {
            assert!(found.iter().all(|port| *port < kernel), "{found:?}");
        }
        let taken = TcpListener::bind((host, 0)).unwrap().local_addr().unwrap();
        assert!(free_address(host, taken.port()).is_ok(), "it is free again");
    }
}
