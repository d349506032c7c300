//! Lends this machine's processor to workers elsewhere: `asymflow-worker --device remote:KEY@IP:PORT`.
//!
//! ```sh
//! cargo run --release -p asymflow-residual --features remote --example remote_host -- KEY_FILE PORT
//! ```
//!
//! The key in KEY_FILE is made on the first start. Whoever reaches the port may compute: a GPU in place of the processor
//! is one word, `Device::cuda(0)`, and `with_authorizer` lets only some in.
#![expect(clippy::print_stdout, reason = "it tells its user what to dial")]

use burn::remote::{IrohIdentity, IrohRelays};
use burn::server::{IrohTransport, RemoteServer};
use burn::tensor::Device;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(file), Some(port)) = (args.next(), args.next()) else {
        return Err("usage: remote_host KEY_FILE PORT".into());
    };
    let identity = IrohIdentity::load_or_create(file)?;
    println!("--device remote:{}@IP:{port}", identity.id());
    let transport = IrohTransport::new(identity).with_relays(IrohRelays::Disabled).with_port(port.parse()?);
    RemoteServer::new([Device::flex()]).serve(transport)?;
    Ok(())
}
