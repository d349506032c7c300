//! The client of two servers.

use std::io::BufWriter;
use std::time::Duration;

use asymflow_wire::WireError;
use asymflow_wire::tls::{Fingerprint, client_config};

use super::protocol::{
    FromServer, Hello, LIMITS, ModelInfo, PROGRAM_LIMITS, Refusal, RefusalCode, ToServer, VERSION, read, write,
};
use super::stream::{NetError, Stream, connect};
use crate::input::{InputShare, OutputShare, open_output, share_input};
use crate::prg::Seed;
use crate::program::{Program, Server};
use crate::ring::Ring;

/// Where a server is, and who.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAt {
    /// Host and port.
    pub address: String,
    /// What it prints when it starts.
    pub fingerprint: Fingerprint,
}

/// A server that has been greeted.
#[derive(Debug)]
struct Greeted {
    stream: Stream,
    who: String,
}

/// Connected to both servers. A failed query ends it: connect again for the next.
#[derive(Debug)]
pub struct Client {
    /// The first and the second.
    servers: [Greeted; 2],
    program: Program,
    info: ModelInfo,
    timeout: Duration,
}

impl Client {
    /// Connects to the two servers, in either order.
    ///
    /// # Errors
    /// A server cannot be reached, is another than its fingerprint says, or the two do not belong together.
    pub fn connect(servers: &[ServerAt; 2], timeout: Duration) -> Result<Self, NetError> {
        let [a, b] = servers;
        if a.fingerprint == b.fingerprint {
            return Err(NetError::Pair(
                "one fingerprint was given twice, and one server with both shares sees the image",
            ));
        }
        let ((one, server, info, program), (other, other_server, other_info, other_program)) =
            (greet(a, timeout)?, greet(b, timeout)?);
        if server == other_server {
            return Err(NetError::Pair("both are the same of the two"));
        }
        if program != other_program || info != other_info {
            return Err(NetError::Pair("they have different models"));
        }
        let servers = match server {
            Server::First => [one, other],
            Server::Second => [other, one],
        };
        let client = Self { servers, program: Program::from_bytes(&program)?, info, timeout };
        if client.info.input.len() != client.program.input_len() {
            return Err(NetError::Pair("they tell a shape of images that their program does not take"));
        }
        Ok(client)
    }

    /// The model.
    pub const fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The program.
    pub const fn program(&self) -> &Program {
        &self.program
    }

    /// The logits of one image (channels × height × width, normalised).
    ///
    /// # Errors
    /// A server refused, failed or is gone.
    pub fn ask<R: Ring>(&mut self, image: &[f32]) -> Result<Vec<f32>, NetError> {
        for server in &mut self.servers {
            server.stream.set_timeout(self.timeout);
        }
        let [first, second] = &mut self.servers;
        first.say(&ToServer::Begin)?;
        let ticket = match first.hear()? {
            FromServer::Ticket(ticket) => ticket,
            other => return Err(NetError::unexpected(&first.who, other)),
        };
        let [left, right] = share_input::<R>(&self.program, ticket.query.number, image, &Seed::random()?)?;
        let header = ToServer::Input { ticket };
        first.send(&header, &left)?;
        second.send(&header, &right)?;
        let answers: [Result<OutputShare<R>, NetError>; 2] =
            [first.answer(&self.program), second.answer(&self.program)];
        match answers {
            [Ok(left), Ok(right)] => Ok(open_output(&self.program, &[left, right])?),
            [Err(first), Err(second)] => Err(if says(&second) > says(&first) { second } else { first }),
            [Err(error), _] | [_, Err(error)] => Err(error),
        }
    }

    /// Says goodbye.
    pub fn close(self) {
        self.servers.into_iter().for_each(|server| server.stream.close());
    }
}

/// How much an error says of what went wrong: a server that lost the other one knows less than the one that was sent nonsense.
const fn says(error: &NetError) -> u8 {
    match error {
        NetError::Wire { .. } => 0,
        NetError::Refused { refusal: Refusal { code: RefusalCode::Peer, .. }, .. } => 1,
        NetError::Refused { .. }
        | NetError::Unreachable { .. }
        | NetError::Fingerprint { .. }
        | NetError::Handshake { .. }
        | NetError::Pair(_)
        | NetError::Run(_)
        | NetError::Tls(_)
        | NetError::Unexpected { .. }
        | NetError::Program(_)
        | NetError::Ring(_)
        | NetError::Client(_)
        | NetError::Transfer(_)
        | NetError::Deal(_)
        | NetError::Random(_)
        | NetError::Proof(_)
        | NetError::Setup(_) => 2,
    }
}

fn greet(server: &ServerAt, timeout: Duration) -> Result<(Greeted, Server, ModelInfo, Vec<u8>), NetError> {
    let stream = connect(&server.address, client_config(server.fingerprint)?, timeout)?;
    let mut greeted = Greeted { stream, who: server.address.clone() };
    greeted.say(&Hello::Client { version: VERSION })?;
    let frame = read(&mut greeted.stream, PROGRAM_LIMITS).map_err(|error| greeted.lost(error))?;
    match frame.header {
        FromServer::Welcome { server, info } => Ok((greeted, server, info, frame.body)),
        other => Err(NetError::unexpected(&greeted.who, other)),
    }
}

impl Greeted {
    fn lost(&self, error: WireError) -> NetError {
        NetError::Wire { who: self.who.clone(), error }
    }

    fn say<H: serde::Serialize>(&mut self, header: &H) -> Result<(), NetError> {
        write(&mut self.stream, header, &[]).map_err(|error| self.lost(error))
    }

    fn hear(&mut self) -> Result<FromServer, NetError> {
        read(&mut self.stream, LIMITS).map(|frame| frame.header).map_err(|error| self.lost(error))
    }

    fn send<R: Ring>(&mut self, header: &ToServer, share: &InputShare<R>) -> Result<(), NetError> {
        self.say(header)?;
        let sent = share.write_to(&mut BufWriter::new(&mut self.stream));
        sent.map(drop).map_err(|error| self.lost(error))
    }

    fn answer<R: Ring>(&mut self, program: &Program) -> Result<OutputShare<R>, NetError> {
        match self.hear()? {
            FromServer::Output => Ok(OutputShare::read_from(&mut self.stream, program)?),
            other => Err(NetError::unexpected(&self.who, other)),
        }
    }
}
