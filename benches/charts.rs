//! Charts over a logarithmic axis: bars that lie, with their names before and their values behind them; or lines, each with its
//! name at its end.

use std::error::Error;
use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// A chart, and the file that it goes to.
pub struct Chart {
    /// Without `.svg`.
    pub file: &'static str,
    pub title: String,
    pub unit: &'static str,
    pub kind: Kind,
}

/// What it shows.
pub enum Kind {
    /// A value each.
    Bars(Vec<(String, f64)>),
    /// The places on the x axis, and for each line its name and its values there.
    Lines { places: Vec<String>, lines: Vec<(String, Vec<f64>)> },
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const WIDTH: u32 = 860;
const FONT: (&str, u32) = ("sans-serif", 14);
/// The height of a line of text.
const LINE: i32 = 17;
/// Ours are blue.
const OURS: [RGBColor; 4] =
    [RGBColor(0, 60, 200), RGBColor(0, 150, 215), RGBColor(95, 70, 190), RGBColor(0, 140, 140)];
const OTHERS: [RGBColor; 12] = [
    RGBColor(90, 90, 90),
    RGBColor(200, 40, 30),
    RGBColor(20, 130, 40),
    RGBColor(190, 100, 0),
    RGBColor(170, 40, 130),
    RGBColor(130, 80, 50),
    RGBColor(120, 130, 0),
    RGBColor(230, 90, 100),
    RGBColor(80, 160, 100),
    RGBColor(150, 150, 150),
    RGBColor(215, 150, 0),
    RGBColor(60, 60, 30),
];

fn is_ours(name: &str) -> bool {
    name.starts_with("offspring")
}

/// Where the axis begins, a power of ten, and where it ends, so much beyond the greatest; `None` if there is nothing to be
/// seen.
fn bounds(values: impl Iterator<Item = f64> + Clone, room: f64) -> Option<Range<f64>> {
    let values = values.filter(|value| *value > 0.0);
    let least = values.clone().min_by(f64::total_cmp)?;
    Some(10_f64.powf((least * 0.95).log10().floor())..values.max_by(f64::total_cmp)? * room)
}

fn figure(value: &f64) -> String {
    if *value >= 10.0 { format!("{value:.0}") } else { format!("{value}") }
}

fn style(colour: RGBColor, place: HPos) -> TextStyle<'static> {
    FONT.into_font().color(&colour).pos(Pos::new(place, VPos::Center))
}

/// Writes the chart to that file.
pub fn draw(chart: &Chart, path: &Path) -> Result<(), Box<dyn Error>> {
    let height = match &chart.kind {
        Kind::Bars(bars) => 110 + 26 * bars.len() as u32,
        Kind::Lines { .. } => 440,
    };
    let area = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut builder = ChartBuilder::on(&area);
    builder.caption(&chart.title, ("sans-serif", 19)).margin(12).x_label_area_size(44);
    match &chart.kind {
        Kind::Bars(bars) => draw_bars(&mut builder, bars, chart.unit)?,
        Kind::Lines { places, lines } => draw_lines(&area, &mut builder, places, lines, chart.unit)?,
    }
    area.present()?;
    Ok(())
}

fn draw_bars(
    builder: &mut ChartBuilder<'_, '_, SVGBackend<'_>>,
    bars: &[(String, f64)],
    unit: &str,
) -> Result<(), Box<dyn Error>> {
    let Some(Range { start: least, end: most }) = bounds(bars.iter().map(|(_, value)| *value), 3.0) else {
        return Ok(());
    };
    // The first one on top.
    let names = |row: &SegmentValue<usize>| match row {
        SegmentValue::CenterOf(n) | SegmentValue::Exact(n) => {
            bars.iter().rev().nth(*n).map_or("", |(name, _)| name).to_owned()
        }
        SegmentValue::Last => String::new(),
    };
    let mut axes = builder
        .y_label_area_size(150)
        .build_cartesian_2d((least..most).log_scale(), (0..bars.len() - 1).into_segmented())?;
    axes.configure_mesh()
        .disable_y_mesh()
        .x_label_formatter(&figure)
        .x_desc(format!("{unit}, on a logarithmic axis"))
        .y_labels(bars.len())
        .y_label_formatter(&names)
        .label_style(FONT)
        .draw()?;
    let rows = || bars.iter().rev().enumerate();
    axes.draw_series(rows().map(|(n, (name, value))| {
        let colour = if is_ours(name) { BLUE.mix(0.6) } else { BLACK.mix(0.25) };
        let corners = [(least, SegmentValue::Exact(n)), (value.max(least), SegmentValue::Exact(n + 1))];
        let mut bar = Rectangle::new(corners, colour.filled());
        bar.set_margin(4, 4, 0, 0);
        bar
    }))?;
    axes.draw_series(rows().map(|(n, (_, value))| {
        let place = (value.max(least), SegmentValue::CenterOf(n));
        EmptyElement::at(place) + Text::new(format!("{value:.0}"), (5, 0), style(BLACK, HPos::Left))
    }))?;
    Ok(())
}

fn draw_lines(
    area: &Area<'_>,
    builder: &mut ChartBuilder<'_, '_, SVGBackend<'_>>,
    places: &[String],
    lines: &[(String, Vec<f64>)],
    unit: &str,
) -> Result<(), Box<dyn Error>> {
    let values = lines.iter().flat_map(|(_, values)| values.iter().copied());
    let Some(range) = bounds(values, 1.5) else { return Ok(()) };
    // Over few decades each digit has a line with a label, and that is enough.
    let light = if range.end / range.start < 100.0 { 1 } else { 10 };
    let names = |place: &SegmentValue<usize>| match place {
        SegmentValue::CenterOf(n) => places.get(*n).cloned().unwrap_or_default(),
        _ => String::new(),
    };
    let mut axes = builder
        .y_label_area_size(86)
        .margin_right(90)
        .build_cartesian_2d((0..places.len() - 1).into_segmented(), range.log_scale())?;
    axes.configure_mesh()
        .disable_x_mesh()
        .y_max_light_lines(light)
        .x_labels(places.len())
        .x_label_formatter(&names)
        .y_label_formatter(&figure)
        .y_desc(format!("{unit}, on a logarithmic axis"))
        .label_style(FONT)
        .draw()?;
    let mut ends = Vec::new();
    let mut others = OTHERS.iter().cycle();
    let mut ours = OURS.iter().cycle();
    for (name, values) in lines {
        let colours = if is_ours(name) { &mut ours } else { &mut others };
        let colour = colours.next().copied().unwrap_or(BLACK);
        let points = values.iter().enumerate().filter(|(_, value)| **value > 0.0);
        let points: Vec<_> = points.map(|(n, value)| (SegmentValue::CenterOf(n), *value)).collect();
        let Some(last) = points.last() else { continue };
        ends.push((axes.backend_coord(last), name, colour));
        axes.draw_series(points.iter().map(|point| Circle::new(point.clone(), 3, colour.filled())))?;
        let width = if is_ours(name) { 3 } else { 1 };
        axes.draw_series(LineSeries::new(points, colour.stroke_width(width)))?;
    }
    let bottom = axes.plotting_area().get_pixel_range().1.end;
    ends.sort_by_key(|((_, y), ..)| *y);
    let heights: Vec<i32> = ends.iter().map(|((_, y), ..)| *y).collect();
    for (((x, y), name, colour), height) in ends.into_iter().zip(apart(heights, bottom)) {
        area.draw(&PathElement::new([(x + 5, y), (x + 24, height)], colour.mix(0.5)))?;
        // No line of the mesh through it.
        let end = x + 30 + 8 * name.len() as i32;
        area.draw(&Rectangle::new([(x + 25, height - 6), (end, height + 6)], WHITE.filled()))?;
        area.draw(&Text::new(name.as_str(), (x + 28, height), style(colour, HPos::Left)))?;
    }
    Ok(())
}

/// Heights, from the top down, moved as far as text needs.
fn apart(mut heights: Vec<i32>, bottom: i32) -> Vec<i32> {
    let mut free = i32::MIN;
    for height in &mut heights {
        *height = free.max(*height);
        free = *height + LINE;
    }
    let mut free = bottom;
    for height in heights.iter_mut().rev() {
        *height = free.min(*height);
        free = *height - LINE;
    }
    heights
}
