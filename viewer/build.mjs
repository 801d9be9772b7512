// Builds the viewer into one file that the Python package ships; `node build.mjs FILE` builds it somewhere else.
import { build } from "esbuild";

await build({
  entryPoints: ["src/main.tsx"],
  outfile: process.argv[2] ?? "../src/pellucid/viewer/static/viewer.js",
  bundle: true,
  minify: true,
  // Long names of our own that are neither in a trace, nor in an answer, nor the browser's.
  mangleProps:
    /^(accent|anchor|atKey|atQuery|attempt|baseline|build|caption|cells|cellText|choose|circle|color|columnLabels|columnTitle|controls|differ|diverging|draw|edited|entry|exact|examples|faint|grid|header|hover|ink|isWeighted|keyHeads|layers|legend|lit|masked|minus|mono|muted|narrowest|need|notice|ofBoth|opacity|pair|palette|panel|paper|param|piece|point|pooled|probabilities|product|query|question|radius|readings|rowHeight|rowLabels|rowTitle|says|scaled|series|server|showing|table|turn|warm|weight)$/,
  format: "iife",
  target: "es2022",
  jsx: "automatic",
  jsxImportSource: "preact",
  loader: { ".css": "text" },
  plugins: [
    {
      // CSS is text that the page adopts as a style sheet, which a strict content policy allows; it is minified here.
      name: "css-as-text",
      setup(bundler) {
        bundler.onLoad({ filter: /\.css$/ }, async ({ path }) => {
          const made = await bundler.esbuild.build({ entryPoints: [path], minify: true, bundle: true, write: false });
          return { contents: made.outputFiles[0].text, loader: "text" };
        });
      },
    },
  ],
  charset: "utf8",
  legalComments: "none",
  logLevel: "warning",
});
