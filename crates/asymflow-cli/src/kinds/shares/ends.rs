//! Connections between the two servers over loopback.

use std::fmt::Display;
use std::io::{self, BufWriter, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use asymflow_shares::link::{DuplexLink, Profile};
use asymflow_shares::net::{Stream, accept, connect};
use asymflow_wire::tls::Identity;

use crate::error::CliError;
use crate::shares_section::LinkName;

pub fn failed(error: impl Display) -> CliError {
    CliError::failed(error.to_string(), "")
}

/// How long a server waits for the other one before it gives up.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server's end of a connection, and how much it wrote.
pub struct End {
    pub link: DuplexLink<Box<dyn Read + Send>>,
    written: Arc<AtomicU64>,
}

impl End {
    fn new(reader: impl Read + Send + 'static, writer: impl Write + Send + 'static, profile: Profile) -> Self {
        let written = Arc::new(AtomicU64::new(0));
        let writer = Counted { writer, written: Arc::clone(&written) };
        Self { link: DuplexLink::new(Box::new(reader), writer, profile), written }
    }

    /// Waits until all is written; returns how many bytes.
    pub fn close(self) -> u64 {
        drop(self.link);
        self.written.load(Ordering::Relaxed)
    }
}

/// Counts what is written.
struct Counted<W> {
    writer: W,
    written: Arc<AtomicU64>,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.writer.write(bytes)?;
        self.written.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

pub fn ends(link: LinkName) -> Result<[End; 2], CliError> {
    let profile = match link {
        LinkName::Tls => return tls_ends(),
        LinkName::Loopback => Profile::LOOPBACK,
        LinkName::Lan => Profile::LAN,
        LinkName::Wan => Profile::WAN,
    };
    let end = |stream: TcpStream| {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok::<_, io::Error>(End::new(stream.try_clone()?, stream, profile))
    };
    let no_connection = |e: io::Error| failed(format!("no connection between the servers: {e}"));
    let connected = || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let first = TcpStream::connect(listener.local_addr()?)?;
        let (second, _) = listener.accept()?;
        Ok::<_, io::Error>([first, second])
    };
    let [first, second] = connected().map_err(no_connection)?;
    Ok([end(first).map_err(no_connection)?, end(second).map_err(no_connection)?])
}

/// As `asymflow-server` has it: a TLS session in each direction, both ends known by their certificates.
fn tls_ends() -> Result<[End; 2], CliError> {
    let identity = || Identity::generate().map_err(failed);
    let (first, second) = (identity()?, identity()?);
    let (to_second, at_second) = session(&first, &second)?;
    let (to_first, at_first) = session(&second, &first)?;
    let end = |reader, writer| End::new(reader, BufWriter::new(writer), Profile::LOOPBACK);
    Ok([end(at_first, to_second), end(at_second, to_first)])
}

/// Both ends of a TLS session that `from` asks `to` for.
fn session(from: &Identity, to: &Identity) -> Result<(Stream, Stream), CliError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?.to_string();
    let (client, server) =
        (from.client_config(to.fingerprint()).map_err(failed)?, to.mutual_server_config().map_err(failed)?);
    let (mut near, mut far) = std::thread::scope(|scope| {
        let far = scope.spawn(|| {
            let (tcp, _) = listener.accept().map_err(failed)?;
            accept(tcp, server, PATIENCE).map_err(failed)
        });
        let near = connect(&address, client, PATIENCE).map_err(failed);
        let far = far.join().map_err(|_| failed("the other end stopped"))?;
        Ok::<_, CliError>((near?, far?))
    })?;
    near.set_timeout(PATIENCE);
    far.set_timeout(PATIENCE);
    Ok((near, far))
}
