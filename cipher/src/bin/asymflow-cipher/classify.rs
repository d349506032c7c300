//! The client: encrypts images, asks, and decrypts.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use asymflow_cipher::messages::Answer;
use asymflow_cipher::{CipherError, Program};
use asymflow_wire::Limits;
use asymflow_wire::tls::{Fingerprint, Stream, client_config, dial};
use asymflow_zoo::data::read_image;
use serde_json::json;

use crate::Help;
use crate::protocol::{Ask, Images, LIMITS, PROGRAM_LIMITS, ProtocolError, Told, VERSION, hear, name_of, say};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Address of the server
    #[arg(long, value_name = "ADDRESS")]
    server: String,
    /// Fingerprint of the server's certificate, as it prints it
    #[arg(long)]
    fingerprint: Fingerprint,
    /// Folder of this client's keys; made there where they are missing
    #[arg(long, value_name = "DIR")]
    keys: PathBuf,
    /// Seconds for each step of the conversation
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
}

struct Conversation {
    stream: Stream,
    timeout: Duration,
}

impl Conversation {
    /// Says one thing, and hears what the server says to it.
    fn ask(&mut self, ask: &Ask, body: &[u8], limits: Limits) -> Result<(Told, Vec<u8>), ProtocolError> {
        let said = say(&mut self.stream, ask, body, self.timeout);
        // A server that refuses says why before it closes, and that is worth more than that it closed.
        match (hear::<Told>(&mut self.stream, limits, self.timeout), said) {
            (Ok(frame), _) => match frame.header {
                Told::Refused(refusal) => Err(refusal.into()),
                told @ (Told::Served(_) | Told::Unknown | Told::Admitted | Told::Answer) => Ok((told, frame.body)),
            },
            (Err(_), Err(error)) | (Err(error), Ok(())) => Err(error),
        }
    }
}

fn unexpected(told: &Told) -> ProtocolError {
    ProtocolError::Unexpected(format!("{told:.20?}"))
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut conversation = connect(args)?;
    let (told, body) = conversation.ask(&Ask::Hello { version: VERSION }, &[], PROGRAM_LIMITS)?;
    let Told::Served(images) = told else { return Err(unexpected(&told).into()) };
    let program = Program::from_bytes(&body)
        .context("the server's program")
        .context(Help("no image was sent: the server's parameters are not 128 bits of security, or it is none"))?;
    ensure!(images.fit(&program), "the server describes other images than its program computes on");
    let planes = args.images.iter().map(|path| read_image(path, images.shape, None)).collect::<Result<Vec<_>, _>>()?;
    let (client, keys) = crate::keys::client(&args.keys, program)?;
    let (told, _) = conversation.ask(&Ask::Use { keys: name_of(&keys) }, &[], LIMITS)?;
    match told {
        Told::Admitted => {}
        Told::Unknown => match conversation.ask(&Ask::Keys, &keys, LIMITS)?.0 {
            Told::Admitted => {}
            told @ (Told::Served(_) | Told::Unknown | Told::Answer | Told::Refused(_)) => {
                return Err(unexpected(&told).into());
            }
        },
        told @ (Told::Served(_) | Told::Answer | Told::Refused(_)) => return Err(unexpected(&told).into()),
    }
    let program = client.program();
    let limits = Limits { body_bytes: program.answer_bytes() as u64 + 4096, ..LIMITS };
    let asked = args.images.iter().zip(planes).collect::<Vec<_>>();
    for chunk in asked.chunks(program.images()) {
        let values: Vec<f32> = chunk.iter().flat_map(|(_, planes)| normalised(planes, &images)).collect();
        let started = Instant::now();
        let query = client.encrypt(&values)?;
        let (told, body) = conversation.ask(&Ask::Query, &query.to_bytes(), limits)?;
        if told != Told::Answer {
            return Err(unexpected(&told).into());
        }
        let answers = Answer::from_bytes(&body).and_then(|answer| client.decrypt(&answer, chunk.len()));
        let answers = answers.map_err(|error| match error {
            CipherError::Noise { .. } => {
                anyhow!(error).context(Help("do not tell the server: what it learns of failures tells it the key"))
            }
            error => anyhow!(error),
        })?;
        let seconds = started.elapsed().as_secs_f64();
        for ((path, _), integers) in chunk.iter().zip(answers) {
            let logits = program.logits(&integers);
            let class = (1..logits.len()).fold(0, |best, at| if logits[at] > logits[best] { at } else { best });
            let name = images.class_names.get(class);
            crate::print(
                &json!({ "image": path, "class": class, "name": name, "logits": logits, "seconds": seconds }),
            )?;
        }
    }
    conversation.stream.close();
    Ok(())
}

fn connect(args: &Args) -> Result<Conversation> {
    let timeout = Duration::from_secs(args.timeout);
    let tcp = dial(&args.server, timeout)
        .with_context(|| args.server.clone())
        .context(Help("start the server with `asymflow-cipher serve`, and give the address that it prints"))?;
    let mut stream = Stream::client(tcp, client_config(args.fingerprint)?)?;
    stream.set_timeout(timeout);
    stream.handshake().map_err(|error| {
        let pinned = Stream::refused_certificate(&error);
        let help = if pinned {
            "another process answers there than the one whose fingerprint was given; nothing was sent to it"
        } else {
            "give the address of a server that speaks TLS 1.3"
        };
        anyhow!(error).context(args.server.clone()).context(Help(help))
    })?;
    Ok(Conversation { stream, timeout })
}

/// Normalised values of an image's bytes.
fn normalised(planes: &[u8], images: &Images) -> Vec<f32> {
    let values = images.normalization().values(images.shape.channels);
    let channels = planes.chunks_exact(images.shape.pixels()).zip(&values);
    channels.flat_map(|(pixels, values)| pixels.iter().map(|&pixel| values[usize::from(pixel)])).collect()
}
