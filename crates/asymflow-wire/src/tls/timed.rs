//! TCP with a deadline.

use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const BUFFER_BYTES: usize = 1 << 17;

/// A TCP stream on which every read and write ends by a deadline, with [`ErrorKind::TimedOut`].
#[derive(Debug)]
pub(super) struct Timed {
    /// TLS asks for a few KiB at a time; the buffer saves most of its system calls.
    stream: BufReader<TcpStream>,
    deadline: Option<Instant>,
}

impl Timed {
    /// `stream`, sending at once, without a deadline yet.
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::with_capacity(BUFFER_BYTES, stream), deadline: None })
    }

    /// Everything until the next call must be over by `deadline`; `None` waits for ever.
    pub(super) const fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    fn remaining(&self) -> io::Result<Option<Duration>> {
        let Some(deadline) = self.deadline else { return Ok(None) };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

/// Linux reports an expired socket timeout as `WouldBlock`, which says nothing to a reader.
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::WouldBlock { ErrorKind::TimedOut.into() } else { error }
}

impl Read for Timed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.stream.buffer().is_empty() {
            self.stream.get_ref().set_read_timeout(self.remaining()?)?;
        }
        self.stream.read(buf).map_err(timed_out)
    }
}

impl Write for Timed {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.get_ref().set_write_timeout(self.remaining()?)?;
        self.stream.get_mut().write(buf).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.get_mut().flush()
    }
}
