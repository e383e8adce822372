"""How the web app looks: colours, type, and the little script it needs."""

from typing import Any

from stylegan_inversion.webapp.messages import gr

CSS = """
.gradio-container {max-width: 1360px !important; margin: 0 auto !important; padding: 12px 16px 32px !important}
#title h1 {font-size: 1.7rem; letter-spacing: -0.02em; margin: 4px 0 2px}
#title p {margin: 0; color: var(--body-text-color-subdued)}
#note p {font-size: var(--text-sm); color: var(--body-text-color-subdued); margin: 0}
.step h2 {font-size: 1.05rem; margin: 6px 0 0}
.step p {margin: 0 0 2px; font-size: var(--text-sm); color: var(--body-text-color-subdued)}
.status {display: flex; flex-direction: column; gap: 6px; min-height: 34px; font-variant-numeric: tabular-nums}
.bar {height: 8px; border-radius: 4px; background: var(--border-color-primary); overflow: hidden}
.bar div {height: 100%; background: var(--color-accent); transition: width 0.3s}
.download-link {display: none}
.footnote p {color: var(--body-text-color-subdued); font-size: var(--text-sm)}
button[role="tab"][aria-selected="true"] {color: var(--primary-700) !important}
.dark button[role="tab"][aria-selected="true"] {color: var(--primary-300) !important}
.figures table {font-variant-numeric: tabular-nums; width: 100%}
.compared {min-height: 222px}
.icon-button-wrapper:not(:has(button, a)) {display: none}
@media (max-width: 640px) {
    .gradio-container {padding: 8px !important; width: 100% !important; max-width: 100vw !important}
    .gradio-container > .main {padding: 0 !important; min-width: 0 !important; max-width: 100% !important}
    .contain, .wrap {min-width: 0; max-width: 100%}
    #title h1 {font-size: 1.35rem}
}
"""

SCRIPT = """() => {
    document.documentElement.lang = "en";
    // What Gradio leaves without a name or a role that screen readers know
    const name = () => {
        document.querySelectorAll("img:not([alt]), img[alt='']").forEach(img => {
            const button = img.closest("button"), block = img.closest(".block");
            if (img.src.startsWith("data:") || button?.ariaLabel || button?.textContent.trim()) return;  // an icon
            const label = block?.querySelector("[data-testid='block-label'], label, .label")?.textContent.trim();
            const all = [...(block?.querySelectorAll("img") ?? [])], place = all.indexOf(img);
            const pair = label?.match(/^(.*): (.*) \\| (.*)$/);  // "Face: before | after"
            img.alt = pair && place < 2 ? `${pair[1]}, ${pair[2 + place]}`
                : `${label || "Picture"}${all.length > 1 ? ` ${place + 1}` : ""}`;
        });
        document.querySelectorAll("div.empty[aria-label]:not([role])").forEach(div => div.setAttribute("role", "img"));
    };
    new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
    name();
}"""


def make_theme() -> Any:
    """Quiet colours, the system's own fonts: nothing is fetched from elsewhere."""
    return gr.themes.Soft(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_background_fill="white",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_700",
        block_shadow="none",
        block_label_background_fill="*neutral_100",
        block_label_background_fill_dark="*neutral_800",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_background_fill="none",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        block_title_padding="0",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_text_color="white",
        button_secondary_border_color="*neutral_300",
        button_cancel_text_color="*neutral_800",
        checkbox_label_background_fill_selected="*primary_700",
        checkbox_border_color="*neutral_500",
        checkbox_label_background_fill_selected_dark="*primary_700",
        checkbox_label_text_color_selected="white",
        checkbox_label_text_color_selected_dark="white",
        input_border_color="*neutral_300",
        slider_color="*primary_600",
    )
