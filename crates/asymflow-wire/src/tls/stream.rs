//! One end of a connection, in TLS or in the clear.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};

use super::pin::Fingerprint;
use super::timed::Timed;

enum Protection {
    Clear(Timed),
    Client(Box<StreamOwned<ClientConnection, Timed>>),
    Server(Box<StreamOwned<ServerConnection, Timed>>),
}

/// One end of a TCP connection, in TLS or in the clear, on which everything ends by a deadline, with
/// [`ErrorKind::TimedOut`].
///
/// The handshake is done by the first reading or writing, or by [`Stream::handshake`].
pub struct Stream(Protection);

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream(..)")
    }
}

/// Connects to `host:port`, or to addresses in turn, trying every address of the host for at most `timeout` each.
///
/// # Errors
/// A name that is not known, or no address that answers: each with what it said, under the kind of the last one.
pub fn dial(address: impl ToSocketAddrs, timeout: Duration) -> io::Result<TcpStream> {
    let unknown = |what: &dyn fmt::Display| {
        let message = format!("no address of this name is known here: {what}; give host:port, or an IP address");
        io::Error::new(ErrorKind::NotFound, message)
    };
    let (mut kind, mut tried) = (ErrorKind::NotFound, Vec::new());
    for address in address.to_socket_addrs().map_err(|e| unknown(&e))? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                kind = error.kind();
                tried.push(format!("{address}: {error}"));
            }
        }
    }
    if tried.is_empty() { Err(unknown(&"it has none")) } else { Err(io::Error::new(kind, tried.join(", "))) }
}

impl Stream {
    /// Neither encryption nor proof of who is there.
    ///
    /// # Errors
    /// The socket does not take its options.
    pub fn insecure_plaintext(tcp: TcpStream) -> io::Result<Self> {
        Ok(Self(Protection::Clear(Timed::new(tcp)?)))
    }

    /// The client's end, of a configuration that pins who answers: the name of the server plays no part.
    ///
    /// # Errors
    /// The socket does not take its options, or the configuration cannot be used.
    pub fn client(tcp: TcpStream, config: Arc<ClientConfig>) -> io::Result<Self> {
        let name = ServerName::IpAddress(tcp.peer_addr()?.ip().into());
        let tls = ClientConnection::new(config, name).map_err(io::Error::other)?;
        Ok(Self(Protection::Client(Box::new(StreamOwned::new(tls, Timed::new(tcp)?)))))
    }

    /// The server's end of a session with whoever has connected.
    ///
    /// # Errors
    /// The socket does not take its options, or the configuration cannot be used.
    pub fn server(tcp: TcpStream, config: Arc<ServerConfig>) -> io::Result<Self> {
        let tls = ServerConnection::new(config).map_err(io::Error::other)?;
        Ok(Self(Protection::Server(Box::new(StreamOwned::new(tls, Timed::new(tcp)?)))))
    }

    /// Ends the handshake, if there is one and it is not done.
    ///
    /// # Errors
    /// It fails: with a [`rustls::Error`] inside ([`refused_certificate`](Self::refused_certificate)), or because the
    /// connection does.
    pub fn handshake(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Protection::Clear(_) => {}
            Protection::Client(tls) => {
                while tls.conn.is_handshaking() {
                    tls.conn.complete_io(&mut tls.sock)?;
                }
            }
            Protection::Server(tls) => {
                while tls.conn.is_handshaking() {
                    tls.conn.complete_io(&mut tls.sock)?;
                }
            }
        }
        Ok(())
    }

    /// Whether `error` says that the other end's certificate is not the pinned one.
    pub fn refused_certificate(error: &io::Error) -> bool {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
    }

    /// Everything until the next call must be over within `timeout`; a new stream waits for ever.
    pub fn set_timeout(&mut self, timeout: Duration) {
        let timed = match &mut self.0 {
            Protection::Clear(timed) => timed,
            Protection::Client(tls) => &mut tls.sock,
            Protection::Server(tls) => &mut tls.sock,
        };
        timed.set_deadline(Instant::now().checked_add(timeout));
    }

    /// The identity that the other end showed, if any.
    pub fn peer(&self) -> Option<Fingerprint> {
        let chain = match &self.0 {
            Protection::Clear(_) => None,
            Protection::Client(tls) => tls.conn.peer_certificates(),
            Protection::Server(tls) => tls.conn.peer_certificates(),
        };
        chain?.first().map(|certificate| Fingerprint::of(certificate))
    }

    /// 32 bytes under `label` that only the two ends of this session know (RFC 5705).
    ///
    /// # Errors
    /// The handshake is not done, or there is none.
    pub fn exporter(&self, label: &[u8]) -> Result<[u8; 32], rustls::Error> {
        match &self.0 {
            Protection::Clear(_) => Err(rustls::Error::HandshakeNotComplete),
            Protection::Client(tls) => tls.conn.export_keying_material([0; 32], label, None),
            Protection::Server(tls) => tls.conn.export_keying_material([0; 32], label, None),
        }
    }

    /// Says that nothing was cut off; the other end need not be there to hear it.
    pub fn close(mut self) {
        match &mut self.0 {
            Protection::Clear(_) => {}
            Protection::Client(tls) => tls.conn.send_close_notify(),
            Protection::Server(tls) => tls.conn.send_close_notify(),
        }
        let _ = self.flush();
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = match &mut self.0 {
            Protection::Clear(timed) => timed.read(buf),
            Protection::Client(tls) => tls.read(buf),
            Protection::Server(tls) => tls.read(buf),
        };
        // A process that is killed says no goodbye.
        read.map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => io::Error::new(ErrorKind::UnexpectedEof, "the other end is gone"),
            _ => error,
        })
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Protection::Clear(timed) => timed.write(buf),
            Protection::Client(tls) => tls.write(buf),
            Protection::Server(tls) => tls.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Protection::Clear(timed) => timed.flush(),
            Protection::Client(tls) => tls.flush(),
            Protection::Server(tls) => tls.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// As a service on 127.0.0.1 is one of two addresses of `localhost`.
    #[test]
    fn every_address_of_a_host_is_tried_and_named() {
        let [free, other] = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
        let listening = TcpListener::bind("127.0.0.1:0").unwrap();
        let second = listening.local_addr().unwrap();
        assert_eq!(dial(&[free, second][..], Duration::from_secs(5)).unwrap().peer_addr().unwrap(), second);
        let error = dial(&[free, other][..], Duration::from_secs(5)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert!([free, other].iter().all(|address| error.to_string().contains(&address.to_string())), "{error}");
        let unknown = dial("host.invalid:80", Duration::from_secs(5)).unwrap_err().to_string();
        assert!(unknown.contains("give host:port, or an IP address"), "{unknown}");
    }
}
