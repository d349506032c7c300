use super::*;

const GROUNDS: [(&str, [u8; 3]); 2] = [("light", [255, 255, 255]), ("dark", [13, 17, 23])];

fn rising(count: usize) -> Plot {
    let line = |number: usize| {
        let points =
            (0..10).map(move |x| (f64::from(x), 10.0 + 9.0 * f64::from(x) * (1.0 - 0.02 * number as f64), 2.0));
        Line::with_intervals(&format!("line {number}"), points)
    };
    Plot { x: "epoch".into(), y: "accuracy %".into(), y_max: Some(100.0), lines: (0..count).map(line).collect() }
}

/// Where the lines of a colour go: their largest and smallest distance from the left.
fn reach(svg: &str, colour: RGBColor) -> Vec<(f64, f64)> {
    let stroke = format!("stroke=\"#{:02X}{:02X}{:02X}\"", colour.0, colour.1, colour.2);
    let of_colour = svg.lines().filter(|line| line.starts_with("<polyline") && line.contains(&stroke));
    let ends = of_colour.map(|line| {
        let points = line.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        let across = points.split_whitespace().map(|point| point.split(',').next().unwrap().parse::<f64>().unwrap());
        across.fold((f64::INFINITY, 0.0_f64), |(least, most), x| (least.min(x), most.max(x)))
    });
    ends.collect()
}

/// Relative luminance and contrast as WCAG 2.2 defines them.
fn contrast(one: [u8; 3], other: [u8; 3]) -> f64 {
    let luminance = |colour: [u8; 3]| {
        let linear = |part: u8| {
            let part = f64::from(part) / 255.0;
            if part <= 0.040_45 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * linear(colour[0]) + 0.7152 * linear(colour[1]) + 0.0722 * linear(colour[2])
    };
    let (one, other) = (luminance(one), luminance(other));
    (one.max(other) + 0.05) / (one.min(other) + 0.05)
}

#[test]
fn lines_and_words_stand_out_on_white_and_on_black() {
    for (name, ground) in GROUNDS {
        for colour in COLOURS {
            assert!(contrast([colour.0, colour.1, colour.2], ground) >= 3.0, "{name}: {colour:?}");
        }
        assert!(contrast([INK.0, INK.1, INK.2], ground) >= 4.2, "{name}");
    }
}

#[test]
fn every_name_stands_beside_the_lines_and_none_over_another() {
    let right = f64::from(WIDTH as i32 - NAMES);
    for lines in [1, 3, 8] {
        let svg = rising(lines).draw("A claim").unwrap();
        for colour in &COLOURS[..lines] {
            let (marks, curves): (Vec<_>, Vec<_>) =
                reach(&svg, *colour).into_iter().partition(|&(from, _)| from > right);
            assert!(marks.len() == 1 && !curves.is_empty(), "{lines} lines: {colour:?}");
            assert!(curves.iter().all(|&(_, to)| to <= right), "{lines} lines: {colour:?}: {curves:?}");
        }
        // Words are words.
        assert!((0..lines).all(|number| svg.contains(&format!("line {number}"))) && svg.contains("A claim"));
    }
    let places = spread(vec![(100, 0), (100, 1), (101, 2), (399, 3), (400, 4)], 400);
    assert!(places.windows(2).all(|pair| pair[1].0 - pair[0].0 >= NAME), "{places:?}");
    assert!(places.iter().all(|&(at, _)| at <= 400), "{places:?}");
}

#[test]
fn more_lines_than_colours_have_a_panel_each() {
    let svg = rising(20).draw("A claim").unwrap();
    assert!((0..20).all(|number| svg.contains(&format!("line {number}"))));
    assert!(COLOURS.iter().all(|colour| reach(&svg, *colour).len() >= 2));
}

#[test]
fn what_has_no_points_is_not_drawn_and_one_point_is() {
    assert_eq!(Plot { lines: vec![Line::new("none", [])], ..rising(0) }.draw("A claim").unwrap(), "");
    let one = Plot { lines: vec![Line::new("one", [(3.0, 0.0)])], y_max: None, ..rising(0) };
    assert!(one.draw("A claim").unwrap().contains("<circle"));
}
