"""What tests of a page ask a browser."""

# JavaScript: the luminance of a colour, and of what lies behind an element (WCAG 2).
CONTRAST = """
          const light = colour => {
            const [r, g, b] = colour.match(/[\\d.]+/g).map(v => v / 255).map(
              v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const back = e => {
            for (; e; e = e.parentElement) {
              const colour = getComputedStyle(e).backgroundColor;
              if (colour !== 'rgba(0, 0, 0, 0)') return light(colour);
            }
            return 1;
          };
"""
