//! Two servers on secret shares, their dealer and their client, each a process of its own.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking, in its helpers as well")]

mod between;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use asymflow::modes::{ModeRef, PrivacyTerms, Registry, Sampling, TrustedOnlySpec};
use asymflow::service::{ClientId, Query, ServedModel, Service, ServiceSettings};
use asymflow_privacy::accountants::Relation;
use asymflow_shares::client::share_input;
use asymflow_shares::net::{
    FromServer, Hello, LIMITS, PROGRAM_LIMITS, QueryName, RefusalCode, Stream, Ticket, ToServer, VERSION, connect,
    read, write,
};
use asymflow_shares::program::Program;
use asymflow_shares::randomness::Seed;
use asymflow_wire::tls::client_config;
use asymflow_zoo::data::{Normalization, read_image, synthetic};
use asymflow_zoo::{Weights, by_name, network::Shape};
use between::{Between, Harm};
use faer::Par;

/// Fixed point against floating point, as the shares crate states it for residual networks.
const TOLERANCE: f32 = 0.0002;

fn model(seed: u64) -> (ServedModel, Vec<f32>) {
    let data = synthetic(100, 0, 1).train;
    let terms = PrivacyTerms { relation: Relation::Remove, delta: 1e-5, budget_epsilon: None };
    let model = ServedModel::new(
        (ModeRef::of(&TrustedOnlySpec).unwrap(), Vec::new()),
        by_name("resnet8-cifar", 10, None).unwrap(),
        terms,
        Sampling { batch: 8, records: 100 },
        Normalization::of(&data),
        data.class_names().to_vec(),
    );
    let network = model.stored_network(&Registry::default()).unwrap();
    let weights = Weights::init(&network, seed).flatten(&network).unwrap();
    (model, weights)
}

/// The bytes of its file.
fn model_file(seed: u64) -> Vec<u8> {
    let (model, weights) = model(seed);
    model.encode(&weights, &Registry::default()).unwrap()
}

fn beside(program: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_asymflow")).with_file_name(program);
    assert!(path.is_file(), "{program} is not built: cargo build --release -p {program}");
    path
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A server that ends with its test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Pair {
    folder: tempfile::TempDir,
    shared: bool,
    addresses: [String; 2],
    fingerprints: [String; 2],
    servers: [Option<Server>; 2],
    /// What stands between the first server and the second.
    between: Option<Between>,
}

impl Pair {
    fn start(shared: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("model.asymflow"), model_file(7)).unwrap();
        let free = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = free.each_ref().map(|listener| listener.local_addr().unwrap().to_string());
        drop(free);
        let servers = [None, None];
        let mut pair = Self { folder, shared, addresses, fingerprints: Default::default(), servers, between: None };
        let policy = if shared { "shared" } else { "public" };
        pair.asymflow(&["client", "prepare-shares", "model.asymflow", "--weights", policy, "--output", "made"], true);
        pair.asymflow(&["samples", "images", "--count", "3"], true);
        for (index, name) in ["first", "second"].into_iter().enumerate() {
            let printed = Command::new(beside("asymflow-server"))
                .current_dir(pair.folder.path())
                .args(["--identity", &format!("{name}.pem"), "--print-fingerprint"])
                .output()
                .unwrap();
            pair.fingerprints[index] = String::from_utf8(printed.stdout).unwrap().trim().to_owned();
        }
        pair.serve(0, &[]);
        pair.serve(1, &[]);
        pair
    }

    fn serve(&mut self, index: usize, more: &[&str]) {
        self.serve_dealers(index, &["--insecure-accept-simulated"], more);
    }

    /// Starts a server that accepts the dealers that `dealers` says.
    fn serve_dealers(&mut self, index: usize, dealers: &[&str], more: &[&str]) {
        let name = ["first", "second"][index];
        let other = 1 - index;
        let mut command = Command::new(beside("asymflow-server"));
        command.current_dir(self.folder.path());
        command.args(["--identity", &format!("{name}.pem"), "--store", name, "--timeout", "10"]);
        let peer = match &self.between {
            Some(between) if index == 0 => &between.address,
            _ => &self.addresses[other],
        };
        command.args(["--listen", &self.addresses[index], "--peer", peer]);
        command.args(["--peer-fingerprint", &self.fingerprints[other]]);
        if self.shared {
            command.args(["--share", &format!("made/{name}.share")]);
        } else {
            command.args(["--server", name]);
            if !more.contains(&"--model") {
                command.args(["--model", "model.asymflow"]);
            }
        }
        let log = File::options().create(true).append(true).open(self.log_path(index)).unwrap();
        let mut child = command.args(dealers).args(more).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("fingerprint"), "{line}");
        self.servers[index] = Some(Server(child));
    }

    fn log_path(&self, index: usize) -> PathBuf {
        self.folder.path().join(format!("{index}.log"))
    }

    /// What a server has said to its operator.
    fn log(&self, index: usize) -> String {
        std::fs::read_to_string(self.log_path(index)).unwrap()
    }

    fn asymflow(&self, flags: &[&str], succeeds: bool) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_asymflow"));
        let output = command.current_dir(self.folder.path()).args(flags).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.success(), succeeds, "{flags:?}: {}", stderr(&output));
        output
    }

    fn deal(&self, queries: &str, succeeds: bool) -> Output {
        let [first, second] = [0, 1].map(|index| [self.addresses[index].as_str(), &self.fingerprints[index]]);
        let mut command = Command::new(beside("asymflow-enclaved"));
        command.current_dir(self.folder.path()).args(["deal", "--program", "made/program", "--queries", queries]);
        let output = command.arg("--server").args(first).arg("--server").args(second).output().unwrap();
        assert_eq!(output.status.success(), succeeds, "{}", stderr(&output));
        output
    }

    fn images(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.folder.path().join("images")).unwrap();
        let mut images: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
        images.sort();
        images
    }

    fn ask(&self, images: &[PathBuf], succeeds: bool) -> Output {
        let mut flags = vec!["client", "shares", "--json"];
        for index in [1, 0] {
            flags.extend(["--server", &self.addresses[index], "--fingerprint", &self.fingerprints[index]]);
        }
        flags.extend(images.iter().map(|path| path.to_str().unwrap()));
        self.asymflow(&flags, succeeds)
    }

    /// Whether there was an answer.
    fn try_ask(&self, images: &[PathBuf]) -> bool {
        let mut command = Command::new(env!("CARGO_BIN_EXE_asymflow"));
        command.current_dir(self.folder.path()).args(["client", "shares", "--json"]);
        for index in [0, 1] {
            command.args(["--server", &self.addresses[index], "--fingerprint", &self.fingerprints[index]]);
        }
        command.args(images).output().unwrap().status.success()
    }

    fn refusal(&self) -> String {
        let output = self.ask(&self.images()[..1], false);
        assert!(output.stdout.is_empty());
        stderr(&output)
    }

    fn assert_answers(&self, images: &[PathBuf]) {
        let output = self.ask(images, true);
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), images.len());
        for (line, expected) in lines.iter().zip(in_process(images)) {
            let logits: Vec<f32> = serde_json::from_value(line["logits"].clone()).unwrap();
            let worst = logits.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(logits.len() == expected.len() && worst < TOLERANCE, "off by {worst}");
        }
    }
}

/// The same images asked in this process, in floating point.
fn in_process(images: &[PathBuf]) -> Vec<Vec<f32>> {
    let (model, weights) = model(7);
    let around = (&Registry::default(), Par::Seq);
    let mut service = Service::new(model, &weights, None, ServiceSettings::default(), around).unwrap();
    let query = |path: &PathBuf| Query {
        client: ClientId::of(&[0; 32]),
        image: read_image(path, Shape::new(3, 32, 32), None).unwrap(),
    };
    let queries: Vec<_> = images.iter().map(query).collect();
    service.answer(&queries).into_iter().map(|answer| answer.unwrap().logits).collect()
}

#[test]
fn four_processes_answer_as_the_network_answers_in_process_with_both_weight_policies() {
    for shared in [false, true] {
        let pair = Pair::start(shared);
        // Nothing was dealt yet.
        let refused = pair.refusal();
        assert!(refused.contains("no randomness is left") && refused.contains("deal more"), "{refused}");
        // The dealer has ended before the first query is asked.
        pair.deal("4", true);
        pair.assert_answers(&pair.images());
        // One that is none costs no query, and the others are answered.
        let broken = pair.folder.path().join("broken.png");
        std::fs::write(&broken, "none").unwrap();
        let output = pair.ask(&[broken, pair.images()[0].clone()], false);
        let told = String::from_utf8(output.stdout).unwrap();
        assert_eq!((output.status.code(), told.lines().count()), (Some(2), 2), "{told}");
        assert!(told.contains("\"error\":") && told.contains("\"logits\":"), "{told}");
        let refused = pair.refusal();
        assert!(refused.contains("no randomness is left"), "{refused}");
    }
}

#[test]
fn what_was_used_stays_used_after_a_kill_and_a_dead_server_is_named() {
    let mut pair = Pair::start(true);
    pair.deal("3", true);
    let images = pair.images();
    pair.assert_answers(&images[..1]);
    // Killed: what was dealt stays, what was used does not come back, and the weights are masked again.
    pair.servers[1] = None;
    let refused = pair.refusal();
    assert!(refused.contains("cannot connect to") && refused.contains("asymflow-server"), "{refused}");
    pair.servers[0] = None;
    pair.serve(0, &[]);
    pair.serve(1, &[]);
    pair.assert_answers(&images[1..]);
    assert!(pair.refusal().contains("no randomness is left"));
}

#[test]
fn strangers_and_other_models_are_refused_by_name() {
    let mut pair = Pair::start(false);
    // Whoever has another fingerprint is not dealt to, and not asked.
    let good = pair.fingerprints[1].clone();
    pair.fingerprints[1] = "ab".repeat(32);
    let refused = pair.refusal();
    assert!(refused.contains("is not the server that its fingerprint was given for"), "{refused}");
    // The server that is met first finds that the dealer deals to another pair.
    let refused = stderr(&pair.deal("1", false));
    assert!(refused.contains("another pair of servers"), "{refused}");
    pair.fingerprints[1] = good;
    // Frames that are none, and a caller that leaves in the middle of its handshake, cost nobody anything.
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1]] {
        let mut stranger = TcpStream::connect(&pair.addresses[0]).unwrap();
        stranger.write_all(bytes).unwrap();
        stranger.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = stranger.read_to_end(&mut Vec::new());
    }
    pair.deal("1", true);
    pair.assert_answers(&pair.images()[..1]);

    // A second server with other weights is found before anything is shared, by dealer and client.
    std::fs::write(pair.folder.path().join("other.asymflow"), model_file(8)).unwrap();
    pair.servers[1] = None;
    std::fs::rename(pair.folder.path().join("second"), pair.folder.path().join("before")).unwrap();
    pair.serve(1, &["--model", "other.asymflow"]);
    let refused = pair.refusal();
    assert!(refused.contains("they have different models"), "{refused}");
    let refused = stderr(&pair.deal("1", false));
    assert!(refused.contains("the dealer has program"), "{refused}");
}

#[test]
fn a_dealer_that_is_no_enclave_is_refused_unless_it_was_asked_for() {
    let mut pair = Pair::start(false);
    let pinned = |byte: &str| format!("[enclave]\nmr_enclave = [\"{}\"]\n", byte.repeat(32));
    std::fs::write(pair.folder.path().join("other.toml"), pinned("cd")).unwrap();
    std::fs::write(pair.folder.path().join("zero.toml"), pinned("00")).unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../asymflow-enclave/tests/fixtures");
    let collateral = fixtures.join("sgx_quote_collateral.json");
    let collateral = ["--collateral", collateral.to_str().unwrap()];
    let refusals = [
        (vec![], "this server accepts no dealer"),
        ([&["--dealer-policy", "zero.toml"], &collateral[..]].concat(), "simulated"),
        (vec!["--dealer-policy", "other.toml", "--insecure-accept-simulated"], "MRENCLAVE"),
    ];
    for (dealers, reason) in refusals {
        pair.servers[0] = None;
        pair.serve_dealers(0, &dealers, &[]);
        let refused = stderr(&pair.deal("1", false));
        assert!(refused.contains(reason), "{dealers:?}: {refused}");
        assert!(pair.refusal().contains("no randomness is left"));
    }
    pair.servers[0] = None;
    pair.serve(0, &[]);
    pair.deal("1", true);
    pair.assert_answers(&pair.images()[..1]);
}

/// A client that has been welcomed, and may break the rules from here on.
fn rogue(pair: &Pair, index: usize) -> (Stream, Program) {
    let config = client_config(pair.fingerprints[index].parse().unwrap()).unwrap();
    let mut stream = connect(&pair.addresses[index], config, Duration::from_secs(60)).unwrap();
    write(&mut stream, &Hello::Client { version: VERSION }, &[]).unwrap();
    let frame = read::<FromServer>(&mut stream, PROGRAM_LIMITS).unwrap();
    assert!(matches!(frame.header, FromServer::Welcome { .. }));
    (stream, Program::from_bytes(&frame.body).unwrap())
}

fn ticket(stream: &mut Stream) -> Ticket {
    write(stream, &ToServer::Begin, &[]).unwrap();
    match read::<FromServer>(stream, LIMITS).unwrap().header {
        FromServer::Ticket(ticket) => ticket,
        other => panic!("{other:?}"),
    }
}

/// A server's share of an image for a ticket.
fn send(stream: &mut Stream, program: &Program, ticket: &Ticket, index: usize) {
    let image = vec![0.5; program.input_len()];
    let shares = share_input::<u64>(program, ticket.query.number, &image, &Seed::random().unwrap()).unwrap();
    write(stream, &ToServer::Input { ticket: ticket.clone() }, &[]).unwrap();
    shares[index].write_to(stream).unwrap();
}

fn code(stream: &mut Stream) -> RefusalCode {
    match read::<FromServer>(stream, LIMITS).unwrap().header {
        FromServer::Refused(refusal) => refusal.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_client_that_breaks_the_rules_is_told_why_and_the_next_one_is_answered() {
    let pair = Pair::start(false);
    pair.deal("2", true);
    pair.assert_answers(&pair.images()[..1]);
    let (mut stream, program) = rogue(&pair, 0);
    let unused = ticket(&mut stream);
    drop(stream);
    let used = Ticket::random(QueryName { number: 0, ..unused.query }).unwrap();

    // Replayed: a number that was used, at the server that gives none out.
    let (mut stream, _) = rogue(&pair, 1);
    send(&mut stream, &program, &used, 1);
    assert_eq!(code(&mut stream), RefusalCode::Reused);
    // Out of order: an input for a ticket that another client was given.
    let (mut stream, _) = rogue(&pair, 0);
    write(&mut stream, &ToServer::Input { ticket: unused.clone() }, &[]).unwrap();
    assert_eq!(code(&mut stream), RefusalCode::Reused);
    // Longer than it may be.
    let (mut stream, _) = rogue(&pair, 0);
    write(&mut stream, &ToServer::Begin, &[1; 9]).unwrap();
    assert_eq!(code(&mut stream), RefusalCode::Protocol, "a body where none belongs");
    // Malformed.
    let (mut stream, _) = rogue(&pair, 0);
    stream.write_all(&[0xff; 64]).unwrap();
    assert_eq!(code(&mut stream), RefusalCode::Protocol);
    // Another version.
    let config = client_config(pair.fingerprints[0].parse().unwrap()).unwrap();
    let mut stream = connect(&pair.addresses[0], config.clone(), Duration::from_secs(60)).unwrap();
    write(&mut stream, &Hello::Client { version: VERSION + 1 }, &[]).unwrap();
    assert_eq!(code(&mut stream), RefusalCode::Version);
    // Somebody who says to be the other server, without its certificate.
    let mut stream = connect(&pair.addresses[0], config, Duration::from_secs(60)).unwrap();
    let hello = Hello::Peer { version: VERSION, model: program.hash(), ticket: unused.id(), set_up: false };
    write(&mut stream, &hello, &[]).unwrap();
    assert_eq!(code(&mut stream), RefusalCode::Identity);
    // Gone in the middle of a frame, with a number in hand.
    let (mut stream, _) = rogue(&pair, 0);
    let ticket = ticket(&mut stream);
    assert_eq!(ticket.query, unused.query, "a number that a client did not use is given to another");
    assert_ne!(ticket.secret, unused.secret, "one that left could ask in place of its successor");
    write(&mut stream, &ToServer::Input { ticket }, &[]).unwrap();
    stream.write_all(b"asyf").unwrap();
    drop(stream);
    // Its number goes back when the server has seen that it is gone.
    let mut next = rogue(&pair, 0).0;
    let given = loop {
        write(&mut next, &ToServer::Begin, &[]).unwrap();
        match read::<FromServer>(&mut next, LIMITS).unwrap().header {
            FromServer::Ticket(ticket) => break ticket,
            _ => next = rogue(&pair, 0).0,
        }
    };
    assert_eq!(given.query, unused.query);
    drop(next);
    let images = pair.images();
    let answered = (0..50).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        pair.try_ask(&images[..1])
    });
    assert!(answered, "the next client was not answered");
}

#[test]
fn a_server_that_is_killed_in_the_middle_of_a_query_is_named_to_the_client() {
    let mut pair = Pair::start(false);
    pair.deal("2", true);
    let (mut stream, program) = rogue(&pair, 0);
    let ticket = ticket(&mut stream);
    send(&mut stream, &program, &ticket, 0);
    // The first server now waits for the second, which dies.
    pair.servers[1] = None;
    assert_eq!(code(&mut stream), RefusalCode::Peer);
    pair.serve(1, &[]);
    pair.assert_answers(&pair.images()[..1]);
}

#[test]
fn a_caller_beyond_all_sessions_is_told_so() {
    let mut pair = Pair::start(false);
    pair.servers[0] = None;
    pair.serve(0, &["--sessions", "2"]);
    let held = [rogue(&pair, 0), rogue(&pair, 0)];
    let refused = pair.refusal();
    assert!(refused.contains("2 conversations at a time") && refused.contains("ask again later"), "{refused}");
    drop(held);
}

#[test]
fn a_harmed_message_between_the_servers_ends_its_query_and_no_other() {
    let mut pair = Pair::start(false);
    let between = Between::start(pair.folder.path(), &pair.addresses[1]);
    pair.servers[0] = None;
    pair.between = Some(between);
    pair.serve(0, &[]);
    let cases = [
        (Harm::Lost, "the other end is gone"),
        (Harm::Truncated, "the other end is gone"),
        (Harm::Malformed, "not a frame"),
        (Harm::Longer, "bytes exceeds the limit of"),
        (Harm::Shorter, "bytes, expected"),
        // Which is longer than the one expected.
        (Harm::Replayed, "bytes exceeds the limit of"),
        (Harm::Stale, "message belongs to query"),
        (Harm::OutOfOrder, "message is step 8, expected 6"),
        (Harm::OtherModel, "message belongs to another model"),
    ];
    pair.deal("20", true);
    let images = pair.images();
    for (harm, reason) in cases {
        // Every harm is done to a query after a good one.
        pair.assert_answers(&images[..1]);
        pair.between.as_ref().unwrap().harm(harm);
        let refused = pair.refusal();
        // The client is told by the server that knows, the operators of both are told as well, and the connection that was
        // harmed is lost to the first one.
        assert!(refused.contains("the other server: ") && refused.contains(reason), "{harm:?}: {refused}");
        assert!(pair.log(0).lines().last().unwrap().contains("the other server: "), "{harm:?}: {}", pair.log(0));
        assert!(pair.log(1).lines().last().unwrap().contains(reason), "{harm:?}: {}", pair.log(1));
    }
    pair.assert_answers(&images[..1]);
}

#[test]
fn a_server_that_is_killed_between_two_rounds_is_named_at_the_other_end() {
    let mut pair = Pair::start(false);
    pair.between = Some(Between::start(pair.folder.path(), &pair.addresses[1]));
    pair.servers[0] = None;
    pair.serve(0, &[]);
    pair.deal("2", true);
    let between = pair.between.as_ref().unwrap();
    between.harm(Harm::Held);
    let second = pair.servers[1].take();
    let refused = std::thread::scope(|scope| {
        let client = scope.spawn(|| pair.refusal());
        between.wait();
        drop(second);
        between.resume();
        client.join().unwrap()
    });
    assert!(refused.contains("the other server") || refused.contains(&pair.addresses[1]), "{refused}");
    assert!(pair.log(0).contains("the other server"), "{}", pair.log(0));
    pair.serve(1, &[]);
    pair.assert_answers(&pair.images()[..1]);
    assert!(pair.refusal().contains("no randomness is left"), "the query that failed gave its randomness back");
}

#[test]
fn a_stranger_without_a_ticket_uses_up_nobodys_query() {
    let pair = Pair::start(false);
    pair.deal("3", true);
    let (mut holder, program) = rogue(&pair, 0);
    let held = ticket(&mut holder).query;
    // The next client's number, which is no secret, before that client comes.
    let guessed = Ticket::random(QueryName { number: held.number + 1, ..held }).unwrap();
    let (mut stranger, _) = rogue(&pair, 1);
    send(&mut stranger, &program, &guessed, 1);
    assert_eq!(code(&mut stranger), RefusalCode::Identity);
    pair.assert_answers(&pair.images()[..1]);
    // And while the client of that number is there.
    let (mut client, _) = rogue(&pair, 0);
    let theirs = ticket(&mut client);
    let (mut stranger, _) = rogue(&pair, 1);
    send(&mut stranger, &program, &Ticket::random(theirs.query).unwrap(), 1);
    assert_eq!(code(&mut stranger), RefusalCode::Identity);
    let (mut second, _) = rogue(&pair, 1);
    send(&mut client, &program, &theirs, 0);
    let (mut stranger, _) = rogue(&pair, 1);
    send(&mut stranger, &program, &Ticket::random(theirs.query).unwrap(), 1);
    assert_eq!(code(&mut stranger), RefusalCode::Identity);
    send(&mut second, &program, &theirs, 1);
    for stream in [&mut client, &mut second] {
        assert_eq!(read::<FromServer>(stream, LIMITS).unwrap().header, FromServer::Output);
    }
}

#[test]
fn queries_a_minute_are_bounded_at_both_servers() {
    for limited in [0, 1] {
        let mut pair = Pair::start(false);
        pair.servers[limited] = None;
        pair.serve(limited, &["--rate", "2"]);
        pair.deal("5", true);
        let images = pair.images();
        pair.assert_answers(&images[..2]);
        let refused = pair.refusal();
        assert!(refused.contains("2 queries began in this minute"), "at {limited}: {refused}");
    }
}

#[test]
fn a_number_that_one_server_has_lost_costs_one_query_and_no_more() {
    for lost in [0, 1] {
        let mut pair = Pair::start(false);
        pair.deal("3", true);
        // As after a crash between the moments in which the two spend a number.
        pair.servers[lost] = None;
        let store = pair.folder.path().join(["first", "second"][lost]);
        let dealing = std::fs::read_dir(store).unwrap().next().unwrap().unwrap().path();
        std::fs::remove_file(dealing.join("0.deal")).unwrap();
        pair.serve(lost, &[]);
        let images = pair.images();
        let answered: Vec<bool> = (0..3).map(|_| pair.try_ask(&images[..1])).collect();
        // The first server gives out its own numbers alone; what the second has lost is lost there as well.
        assert_eq!(answered, [[true, true, false], [false, true, true]][lost], "lost at {lost}");
    }
}

#[test]
fn a_number_that_a_client_used_at_the_second_server_alone_is_not_given_again() {
    let pair = Pair::start(false);
    pair.deal("2", true);
    let (mut client, program) = rogue(&pair, 0);
    let given = ticket(&mut client);
    let (mut second, _) = rogue(&pair, 1);
    send(&mut second, &program, &given, 1);
    // The second server has asked the first about the ticket by now, or will be refused because its client is gone.
    std::thread::sleep(Duration::from_secs(1));
    drop(client);
    assert_eq!(code(&mut second), RefusalCode::Peer);
    pair.assert_answers(&pair.images()[..1]);
    assert!(pair.refusal().contains("no randomness is left"));
}

#[test]
fn a_store_serves_the_model_that_it_was_dealt_for() {
    let mut pair = Pair::start(true);
    pair.deal("2", true);
    pair.assert_answers(&pair.images()[..1]);
    let (other, weights) = model(8);
    std::fs::write(pair.folder.path().join("other.asymflow"), other.encode(&weights, &Registry::default()).unwrap())
        .unwrap();
    pair.asymflow(&["client", "prepare-shares", "other.asymflow", "--weights", "shared", "--output", "other"], true);
    pair.servers = [None, None];
    let mut command = Command::new(beside("asymflow-server"));
    command.current_dir(pair.folder.path()).args(["--identity", "first.pem", "--share", "other/first.share"]);
    command.args(["--store", "first", "--peer", &pair.addresses[1], "--peer-fingerprint", &pair.fingerprints[1]]);
    let output = command.arg("--exit-with-parent").stdin(Stdio::null()).output().unwrap();
    let said = stderr(&output);
    assert!(!output.status.success() && said.contains("the randomness is for another model"), "{said}");
    // The model of before is served on.
    pair.serve(0, &[]);
    pair.serve(1, &[]);
    pair.assert_answers(&pair.images()[..1]);
}

/// Processor time that a process has taken, in clock ticks.
fn ticks(server: &Server) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.0.id())).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn a_server_without_descriptors_waits_and_recovers() {
    let mut pair = Pair::start(false);
    pair.servers[0] = None;
    pair.serve(0, &[]);
    let id = pair.servers[0].as_ref().unwrap().0.id();
    let limited = Command::new("prlimit").args(["--pid", &id.to_string(), "--nofile=24:24"]).status().unwrap();
    assert!(limited.success());
    pair.deal("1", true);
    let idle: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(&pair.addresses[0]).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(500));
    let before = ticks(pair.servers[0].as_ref().unwrap());
    std::thread::sleep(Duration::from_secs(2));
    let taken = ticks(pair.servers[0].as_ref().unwrap()) - before;
    assert!(taken < 50, "{taken} hundredths of a second of two seconds");
    drop(idle);
    let images = pair.images();
    let answered = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        pair.try_ask(&images[..1])
    });
    assert!(answered, "it did not recover");
}
