// Builds the viewer into one file that the Python package ships; `node build.mjs FILE PARTS` builds it somewhere
// else and writes what it is made of.
import { readFile, writeFile } from "node:fs/promises";
import { build } from "esbuild";

const OFTEN = "Math.abs Math.ceil Math.exp Math.floor Math.max Math.min Math.round Number.isFinite Number.isNaN JSON.stringify Array.from Object.entries Object.fromEntries Object.keys".split(" ");

const { metafile } = await build({
  metafile: true,
  entryPoints: ["src/main.tsx"],
  outfile: process.argv[2] ?? "../src/pellucid/viewer/static/viewer.js",
  bundle: true,
  minify: true,
  // Long names of our own, of Preact's and of d3's that are neither in a trace, nor in an answer, nor the browser's. Where an
  // object of theirs has the same name, it is written in quotation marks: context["fill"](path).
  mangleProps:
    /^(_append|_context|_line|_point|_x0|_x1|_y0|_y1|accent|anchor|areaEnd|areaStart|atKey|atQuery|attempt|bars|baseline|behind|bezierCurveTo|boxes|build|bySource|caption|cells|cellText|choose|circle|color|columnLabels|columns|columnTitle|component(?:Did|Will)\w+|controls|counts|current|curve|defined|differ|digits|diverging|domain|draw|edited|entry|exact|examples|faint|fill|finish|found|getChildContext|getDerivedStateFrom\w+|getSnapshotBeforeUpdate|grid|header|hover|ink|invert|isWeighted|keyHeads|label|layers|legend|line|lineEnd|lineStart|lineX0|lineX1|lineY0|lineY1|linked|lit|logprobs|look|masked|minus|mono|muted|narrowest|need|notice|ofBoth|opacity|over|pair|palette|panel|paper|param|past|path|picker|picture|piece|point|pooled|probabilities|product|props|quadraticCurveTo|query|question|radius|rangeRound|ranks|read|reading|readings|rect|rowHeight|rowLabels|rows|rowTitle|said|says|scaled|screen|series|server|shouldComponentUpdate|showing|sliders|slots|stays|stroke|table|tickFormat|tiles|trace|turn|unknown|warm|weight|xTitle|yTitle)$/,
  format: "iife",
  target: "es2022",
  jsxFactory: "element",
  jsxFragment: "Fragment",
  inject: ["src/injected.ts"],
  define: Object.fromEntries(OFTEN.map((name) => [name, name.replace(/.*\./, "$")])),
  // A tsconfig.json that says how types are checked does not say how JSX is built.
  tsconfigRaw: {},
  loader: { ".css": "text" },
  plugins: [
    {
      // Scales here go from numbers to numbers, which text.ts writes, and paths have no arcs: the rest of d3 is left out.
      name: "numbers-and-lines",
      setup(bundler) {
        bundler.onLoad({ filter: /d3-interpolate.src.value\.js$/ }, () => ({ contents: 'export { default } from "./number.js"' }));
        bundler.onLoad({ filter: /d3-path\.mjs$/ }, async ({ path }) => ({ contents: (await readFile(path, "utf8")).replace(/\n {2}arcTo\([^]*(?=\n {2}toString\()/, "") }));
        bundler.onLoad({ filter: /d3-scale.src.tickFormat\.js$/ }, () => ({ contents: "export default () => String" }));
      },
    },
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

if (process.argv[3]) await writeFile(process.argv[3], JSON.stringify(metafile));
