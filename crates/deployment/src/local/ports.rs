//! Free ports.

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
    let address = SocketAddr::new(host, port);
    let listener =
        TcpListener::bind(address).map_err(|source| Error::Listen { address, source })?;
    listener.local_addr().map_err(|source| Error::Listen { address, source })
}
