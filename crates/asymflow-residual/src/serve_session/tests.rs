use asymflow_zoo::ops::{Easing, RangePenalty};
use proptest::prelude::*;

use super::*;
use crate::burn_backend::{BurnBackend, DeviceChoice};
use crate::protocol::Encoding;

const MODEL: &[u8] = br#"{"units":[{"Conv":{"input":{"channels":2,"height":3,"width":3},"out_channels":2,
    "kernel":3,"stride":1,"padding":1}}]}"#;

fn serving(limits: &ServeLimits) -> Serving {
    let backend = BurnBackend::new(DeviceChoice::Flex);
    open_model(MODEL, &backend, Precision::F32, limits).ok().unwrap()
}

/// One whose other end is nobody's: bodies are at hand.
fn connection() -> Connection {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    Connection::new(asymflow_wire::tls::Stream::insecure_plaintext(stream).unwrap(), None)
}

fn request() -> impl Strategy<Value = RequestHeader> {
    let precision = || prop_oneof![Just(Precision::F32), Just(Precision::F16)];
    let encoding = prop_oneof![
        precision().prop_map(Encoding::Float),
        prop_oneof![0u64..200, any::<u64>()].prop_map(|values| Encoding::Bits { values }),
    ];
    let pass = prop_oneof![Just(Pass::Inference), Just(Pass::Training)];
    let unit = || 0u32..3;
    let sgd = any::<[f32; 6]>().prop_map(
        |[learning_rate, momentum, weight_decay, clip_norm, coefficient_rate, first_layer_rate]| {
            let sgd = crate::backend::SgdStep::plain(learning_rate, momentum, weight_decay);
            crate::backend::SgdStep { clip_norm, coefficient_rate, first_layer_rate, ..sgd }
        },
    );
    let easing = any::<(f32, bool, Option<(f32, f32, i32)>)>().prop_map(|(sharing, straight_through, range)| {
        let range = range.map(|(limit, weight, exponent)| RangePenalty { limit, weight, exponent });
        Easing { sharing, straight_through, range }
    });
    let wanted = any::<(bool, bool)>().prop_map(|(input, weights)| crate::backend::Wanted { input, weights });
    prop_oneof![
        (unit(), easing).prop_map(|(unit, easing)| RequestHeader::Ease { unit, easing }),
        (unit(), pass.clone(), encoding).prop_map(|(unit, pass, encoding)| RequestHeader::Forward {
            unit,
            pass,
            encoding
        }),
        (unit(), 0u32..4, 0u32..4, any::<bool>()).prop_map(|(unit, first, samples, labelled)| RequestHeader::Store {
            unit,
            first,
            samples,
            labelled
        }),
        (unit(), pass).prop_map(|(unit, pass)| RequestHeader::ForwardStored { unit, pass }),
        (unit(), sgd.clone()).prop_map(|(unit, sgd)| RequestHeader::TrainStored { unit, sgd }),
        (unit(), wanted, precision()).prop_map(|(unit, wanted, precision)| RequestHeader::Gradient {
            unit,
            wanted,
            precision
        }),
        unit().prop_map(|unit| RequestHeader::SetWeights { unit }),
        (unit(), precision()).prop_map(|(unit, precision)| RequestHeader::AddWeights { unit, precision }),
        (unit(), sgd).prop_map(|(unit, sgd)| RequestHeader::Step { unit, sgd }),
        unit().prop_map(|unit| RequestHeader::Weights { unit }),
        Just(RequestHeader::Reset),
    ]
}

/// Bodies of any length, and of the lengths that fit.
fn body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        any::<Vec<u8>>(),
        (1usize..4).prop_map(|samples| vec![0x3c; samples * 18 * 4]),
        Just(vec![0x3c; 2 * 2 * 9 * 4]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_sequence_of_requests_ends_a_session(requests in prop::collection::vec((request(), body()), 1..20)) {
        let (mut serving, connection) = (serving(&ServeLimits::default()), connection());
        for (request, body) in requests {
            let lost = matches!(serving.answer(request, Body::Here(body), &connection), Err(Refusal::Lost(_)));
            prop_assert!(!lost, "a session that a client can end for itself hides a failure");
        }
        prop_assert!(serving.answer(RequestHeader::Reset, Body::Here(Vec::new()), &connection).is_ok());
    }

    #[test]
    fn no_model_panics(json: Vec<u8>) {
        let backend = BurnBackend::new(DeviceChoice::Flex);
        prop_assert!(open_model(&json, &backend, Precision::F32, &ServeLimits::default()).is_err());
    }

    #[test]
    fn a_damaged_model_never_panics(at: prop::sample::Index, byte: u8) {
        let mut json = MODEL.to_vec();
        let at = at.index(json.len());
        json[at] = byte;
        let limits = ServeLimits { session_bytes: 1 << 20, ..ServeLimits::default() };
        let _ = open_model(&json, &BurnBackend::new(DeviceChoice::Flex), Precision::F32, &limits);
    }
}

#[test]
fn an_answer_beyond_the_body_limit_is_refused_before_it_is_computed() {
    let limits = ServeLimits { body_bytes: 18 * 4, ..ServeLimits::default() };
    let (mut serving, connection) = (serving(&limits), connection());
    let forward =
        || RequestHeader::Forward { unit: 0, pass: Pass::Inference, encoding: Encoding::Float(Precision::F16) };
    assert!(serving.answer(forward(), Body::Here(vec![0; 18 * 2]), &connection).is_ok());
    let refused = serving.answer(forward(), Body::Here(vec![0; 2 * 18 * 2]), &connection).err();
    assert!(matches!(refused, Some(Refusal::Failed(reason)) if reason.contains("exceeds the limit of 72")));
}
