// Builds the viewer into one file that the Python package ships; `node build.mjs FILE` builds it somewhere else.
import { build } from "esbuild";

const OFTEN = "Math.abs Math.ceil Math.exp Math.floor Math.max Math.min Math.round Number.isFinite Number.isNaN JSON.stringify".split(" ");

await build({
  entryPoints: ["src/main.tsx"],
  outfile: process.argv[2] ?? "../src/pellucid/viewer/static/viewer.js",
  bundle: true,
  minify: true,
  // Long names of our own and of Preact's that are neither in a trace, nor in an answer, nor the browser's. Where an
  // object of theirs has the same name, it is written in quotation marks: context["fill"](path).
  mangleProps:
    /^(accent|anchor|atKey|atQuery|attempt|baseline|behind|build|bySource|caption|cells|cellText|choose|circle|color|columnLabels|columns|columnTitle|component(?:Did|Will)\w+|controls|counts|current|differ|diverging|draw|edited|entry|exact|examples|faint|fill|getChildContext|getDerivedStateFrom\w+|getSnapshotBeforeUpdate|grid|header|hover|ink|isWeighted|keyHeads|label|layers|legend|line|lit|masked|minus|mono|muted|narrowest|need|notice|ofBoth|opacity|pair|palette|panel|paper|param|piece|point|pooled|probabilities|product|query|question|radius|read|reading|readings|rect|rowHeight|rowLabels|rows|rowTitle|says|scaled|screen|series|server|shouldComponentUpdate|showing|stroke|table|tiles|trace|turn|warm|weight)$/,
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
