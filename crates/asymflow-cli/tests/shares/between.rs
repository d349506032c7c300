//! A network between the two servers that does harm to what the first one sends the second.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use asymflow_shares::net::{FromServer, Hello, LIMITS, Stream, accept, connect, read, write};
use asymflow_shares::server::Header;
use asymflow_wire::tls::{Fingerprint, Identity};
use asymflow_wire::{Frame, Limits, read_frame, write_frame};

const TIMEOUT: Duration = Duration::from_secs(60);

/// What happens to one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// It and the connection are lost.
    Lost,
    /// The connection ends in the middle of it.
    Truncated,
    /// No frame.
    Malformed,
    /// Eight bytes more.
    Longer,
    /// Eight bytes fewer.
    Shorter,
    /// The one before comes again.
    Replayed,
    /// The one of the query before comes again.
    Stale,
    /// It says to be a later one.
    OutOfOrder,
    /// It says to be of another model.
    OtherModel,
    /// It waits until [`Between::resume`].
    Held,
}

/// Which message of a query is harmed: in the middle of it.
const HARMED: usize = 6;

/// See the module.
pub struct Between {
    pub address: String,
    harm: Arc<Mutex<Option<Harm>>>,
    held: Mutex<Receiver<()>>,
    resume: SyncSender<()>,
}

impl Between {
    /// Holds the identities of both servers in `folder`, and passes on to the second one at `second`.
    pub fn start(folder: &Path, second: &str) -> Self {
        let identity = |name: &str| Identity::load_or_create(&folder.join(name)).unwrap();
        let (first, second_identity) = (identity("first.pem"), identity("second.pem"));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (harm, (hold, held), (resume, resumed)) = (Arc::default(), sync_channel(0), sync_channel(0));
        let pin = second_identity.fingerprint();
        let mut wire =
            Wire { first, pin, second: second.to_owned(), harm: Arc::clone(&harm), hold, resumed, old: None };
        std::thread::spawn(move || {
            let tls = second_identity.mutual_server_config().unwrap();
            for tcp in listener.incoming() {
                // Where a server is gone, the other one says so.
                if let Ok(caller) = accept(tcp.unwrap(), Arc::clone(&tls), TIMEOUT) {
                    wire.pass(caller);
                }
            }
        });
        Self { address, harm, held: Mutex::new(held), resume }
    }

    /// Does harm to the next query.
    pub fn harm(&self, harm: Harm) {
        *self.harm.lock().unwrap() = Some(harm);
    }

    /// Until a message is held.
    pub fn wait(&self) {
        self.held.lock().unwrap().recv().unwrap();
    }

    /// Lets the held message go.
    pub fn resume(&self) {
        self.resume.send(()).unwrap();
    }
}

struct Wire {
    first: Identity,
    pin: Fingerprint,
    second: String,
    harm: Arc<Mutex<Option<Harm>>>,
    hold: SyncSender<()>,
    resumed: Receiver<()>,
    /// The harmed message's place in the query before.
    old: Option<Frame<Header>>,
}

impl Wire {
    /// One query's messages of the first server.
    fn pass(&mut self, mut caller: Stream) -> Option<()> {
        let hello: Frame<Hello> = read(&mut caller, LIMITS).ok()?;
        let mut second = connect(&self.second, self.first.client_config(self.pin).unwrap(), TIMEOUT).ok()?;
        write(&mut second, &hello.header, &[]).ok()?;
        let answer: Frame<FromServer> = read(&mut second, LIMITS).ok()?;
        write(&mut caller, &answer.header, &[]).ok()?;
        let harm = self.harm.lock().unwrap().take();
        let mut last = None;
        for index in 0.. {
            caller.set_timeout(TIMEOUT);
            second.set_timeout(TIMEOUT);
            let frame: Frame<Header> =
                read_frame(&mut caller, Limits { header_bytes: 256, body_bytes: 1 << 26 }).ok()?;
            let harm = harm.filter(|_| index == HARMED);
            let old = if index == HARMED { self.old.replace(copy(&frame)) } else { None };
            if harm == Some(Harm::Held) {
                self.hold.send(()).unwrap();
                self.resumed.recv().unwrap();
            }
            let bytes = harmed(harm, &frame, last.as_ref(), old.as_ref());
            let sent = second.write_all(&bytes).and_then(|()| second.flush());
            if sent.is_err() || matches!(harm, Some(Harm::Lost | Harm::Truncated)) {
                return None;
            }
            last = Some(frame);
        }
        second.close();
        Some(())
    }
}

fn copy(frame: &Frame<Header>) -> Frame<Header> {
    Frame { header: frame.header, body: frame.body.clone() }
}

fn encoded(header: &Header, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_frame(&mut BufWriter::new(&mut bytes), header, body).unwrap();
    bytes
}

/// The bytes that arrive in place of `frame`.
fn harmed(
    harm: Option<Harm>,
    frame: &Frame<Header>,
    last: Option<&Frame<Header>>,
    old: Option<&Frame<Header>>,
) -> Vec<u8> {
    let Frame { header, body } = frame;
    let with = |changes: BTreeMap<&str, serde_json::Value>| {
        let mut fields = serde_json::to_value(header).unwrap();
        changes.into_iter().for_each(|(name, value)| fields[name] = value);
        encoded(&serde_json::from_value(fields).unwrap(), body)
    };
    let mut bytes = encoded(header, body);
    match harm {
        None | Some(Harm::Held) => bytes,
        Some(Harm::Lost) => Vec::new(),
        Some(Harm::Truncated) => bytes[..bytes.len() / 2].to_vec(),
        Some(Harm::Malformed) => {
            bytes[0] ^= 1;
            bytes
        }
        Some(Harm::Longer) => encoded(header, &[body.as_slice(), &[0; 8]].concat()),
        Some(Harm::Shorter) => encoded(header, &body[8..]),
        Some(Harm::Replayed) => last.map(|frame| encoded(&frame.header, &frame.body)).unwrap(),
        Some(Harm::Stale) => old.map(|frame| encoded(&frame.header, &frame.body)).unwrap(),
        Some(Harm::OutOfOrder) => with(BTreeMap::from([("step", (HARMED + 2).into())])),
        Some(Harm::OtherModel) => with(BTreeMap::from([("model", vec![7; 32].into())])),
    }
}
