// {{package}} on a device, on each of its compute units, against what PyTorch computes in fp32.
//
// Written by `python -m validate PACKAGE --golden {{directory}}`.
//
// 1. Add the directory {{directory}} to the test target as a folder reference, so that it is copied as it is. (In a
//    Swift package: `resources: [.copy("{{directory}}")]`.) Xcode must not compile the package that is in it: the tests
//    do, since only so can they say which package they are about.
// 2. Add this file to the sources of the same target.
// 3. Run the tests on the device: iOS 16 or macOS 13 at least; a package of several sizes needs iOS 18 or macOS 15.
// 4. results.json is attached to the last test of the report, and its path is printed. Copy it into {{directory}},
//    with the directory `outputs` beside it if there is one, and ask for the verdict:
//    `python -m validate --against {{directory}}/results.json`
//
// The pictures have exactly the size of the package's input, and go to Core ML as pixel buffers. Vision is left out on
// purpose: it would resize and crop with an interpolation of its own, and the figures would be those of two things.

import CoreGraphics
import CoreML
import CoreVideo
import CryptoKit
import Foundation
import ImageIO
import Metal
import XCTest

/// Each test is of one compute unit. All of it is synchronous: what is timed is Core ML, not the hops of a task.
@available(iOS 16.0, macOS 13.0, *)
final class MobileViTGoldenTests: XCTestCase {
    func testCPUOnly() throws {
        try prove(on: .cpuOnly, called: "cpuOnly")
    }

    func testCPUAndGPU() throws {
        try prove(on: .cpuAndGPU, called: "cpuAndGPU")
    }

    func testCPUAndNeuralEngine() throws {
        try prove(on: .cpuAndNeuralEngine, called: "cpuAndNeuralEngine")
    }

    func testAll() throws {
        try prove(on: .all, called: "all")
    }

    private func prove(on units: MLComputeUnits, called name: String) throws {
        let golden = try Golden(directory: "{{directory}}", digest: "{{digest}}")
        guard golden.manifest.computeUnits.contains(name) else {
            throw XCTSkip("the manifest does not ask for \(name)")
        }
        var results = Results.opened(for: golden)
        results.runs.removeAll { $0.units == name }
        // Core ML may abort the process. Then this is what stays, and the tests go on with the next compute unit.
        results.runs += golden.manifest.functions.map { function in
            Run(units: name, function: function.name, error: "did not finish: it crashed, or was stopped")
        }
        try golden.write(results)
        for function in golden.manifest.functions {
            let run = measured(function, of: golden, on: units, called: name)
            results.runs.removeAll { $0.units == name && $0.function == function.name }
            results.runs.append(run)
            try golden.write(results)
            judge(run, by: golden.manifest.gates)
        }
        let attachment = XCTAttachment(contentsOfFile: golden.resultsURL)
        attachment.name = "results.json"
        attachment.lifetime = .keepAlways
        add(attachment)
        print("results: \(golden.resultsURL.path)")
    }

    /// One function on one compute unit; whatever goes wrong is in the run.
    private func measured(
        _ function: Manifest.Function, of golden: Golden, on units: MLComputeUnits, called name: String
    ) -> Run {
        var run = Run(units: name, function: function.name, error: nil)
        let configuration = MLModelConfiguration()
        configuration.computeUnits = units
        if let functionName = function.functionName {
            guard #available(iOS 18.0, macOS 15.0, *) else {
                run.notRun = "a package of several functions needs iOS 18 or macOS 15"
                return run
            }
            configuration.functionName = functionName
        }
        do {
            let compiled = try golden.compiled()
            defer { try? FileManager.default.removeItem(at: compiled) }
            let start = DispatchTime.now()
            let model = try MLModel(contentsOf: compiled, configuration: configuration)
            let seconds = milliseconds(since: start) / 1000
            let tester = FunctionTester(model: model, function: function, golden: golden, units: name)
            var figures = Figures()
            for index in function.pictures.indices {
                run.pictures.append(try tester.result(of: index, into: &figures))
            }
            run.latency = try tester.latency(loadSeconds: seconds)
            run.figures = figures.values
            run.figures["latency"] = run.latency?.medianMilliseconds
        } catch {
            run.error = String(describing: error)
        }
        return run
    }

    /// The gates this file can measure itself; `python -m validate --against` judges all of them.
    private func judge(_ run: Run, by gates: [Manifest.Gate]) {
        let place = "\(run.units), \(run.function)"
        if let error = run.error {
            XCTFail("\(place): \(error)")
        } else if let reason = run.notRun {
            print("NOT_RUN \(place): \(reason)")
        } else {
            for gate in gates {
                guard let figure = run.figures[gate.name] else {
                    print("\(place): gate \(gate.name) is left to --against")
                    continue
                }
                // not XCTAssertGreaterThanOrEqual of either side: what is no number reaches no gate
                let reached = gate.atLeast ? figure >= gate.bound : figure <= gate.bound
                let side = gate.atLeast ? "at least" : "at most"
                XCTAssertTrue(
                    reached, "\(place): gate \(gate.name): expected \(side) \(gate.bound) \(gate.unit), got \(figure)")
            }
        }
    }
}

/// What is wrong, in a line.
private struct Problem: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) {
        self.description = description
    }
}

// MARK: manifest.json

private struct Manifest: Decodable {
    struct Gate: Decodable {
        let name: String
        let bound: Double
        let atLeast: Bool
        let unit: String

        enum CodingKeys: String, CodingKey {
            case name, bound, unit
            case atLeast = "at_least"
        }
    }

    struct Output: Decodable {
        let name: String
        let kind: String
        let stored: String
        let shape: [Int]
        let inline: Bool

        var count: Int { shape.reduce(1, *) }
    }

    struct Picture: Decodable {
        let file: String
        let rgb: String
        let expected: [String: String]
    }

    struct Function: Decodable {
        let name: String
        let functionName: String?
        let height: Int
        let width: Int
        let outputs: [Output]
        let pictures: [Picture]

        enum CodingKeys: String, CodingKey {
            case name, height, width, outputs, pictures
            case functionName = "function_name"
        }
    }

    let schema: Int
    let package: String
    let sha256: String
    let input: String
    let classes: [String]
    let computeUnits: [String]
    let gates: [Gate]
    let warmUp: Int
    let predictions: Int
    let leastProbability: Double
    let functions: [Function]

    enum CodingKeys: String, CodingKey {
        case schema, package, sha256, input, classes, gates, predictions, functions
        case computeUnits = "compute_units"
        case warmUp = "warm_up"
        case leastProbability = "least_probability"
    }
}

// MARK: results.json

private struct Latency: Codable {
    let loadSeconds: Double
    let medianMilliseconds: Double
    let percentile95Milliseconds: Double
    let predictions: Int

    enum CodingKeys: String, CodingKey {
        case predictions
        case loadSeconds = "load_seconds"
        case medianMilliseconds = "median_ms"
        case percentile95Milliseconds = "p95_ms"
    }
}

private struct PictureResult: Codable {
    let index: Int
    var label: String?
    var figures: [String: Double] = [:]
    var outputs: [String: String] = [:]
}

private struct Run: Codable {
    let units: String
    let function: String
    var error: String?
    var notRun: String?
    var latency: Latency?
    var figures: [String: Double] = [:]
    var pictures: [PictureResult] = []

    init(units: String, function: String, error: String?) {
        self.units = units
        self.function = function
        self.error = error
    }

    enum CodingKeys: String, CodingKey {
        case units, function, error, latency, figures, pictures
        case notRun = "not_run"
    }
}

private struct Device: Codable, Equatable {
    let model: String
    let system: String
    let chip: String
    let simulator: Bool
    let computeDevices: [String]?

    enum CodingKeys: String, CodingKey {
        case model, system, chip, simulator
        case computeDevices = "compute_devices"
    }

    static func current() -> Device {
        Device(
            model: modelName(),
            system: systemName(),
            chip: MTLCreateSystemDefaultDevice()?.name ?? "unknown",  // the GPU is called after its chip
            simulator: isSimulator(),
            computeDevices: availableDevices())
    }

    private static func modelName() -> String {
        if let simulated = ProcessInfo.processInfo.environment["SIMULATOR_MODEL_IDENTIFIER"] {
            return simulated
        }
        #if os(macOS)
            let key = "hw.model"
        #else
            let key = "hw.machine"
        #endif
        var size = 0
        guard sysctlbyname(key, nil, &size, nil, 0) == 0, size > 0 else { return "unknown" }
        var bytes = [UInt8](repeating: 0, count: size)
        guard sysctlbyname(key, &bytes, &size, nil, 0) == 0 else { return "unknown" }
        return String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
    }

    private static func systemName() -> String {
        let version = ProcessInfo.processInfo.operatingSystemVersionString
        #if os(macOS)
            return "macOS \(version)"
        #elseif os(iOS)
            return "iOS \(version)"
        #else
            return version
        #endif
    }

    private static func isSimulator() -> Bool {
        #if targetEnvironment(simulator)
            return true
        #else
            return false
        #endif
    }

    /// nil where the system is too old to say.
    private static func availableDevices() -> [String]? {
        guard #available(iOS 17.0, macOS 14.0, *) else { return nil }
        return MLComputeDevice.allComputeDevices.map { device in
            switch device {
            case .cpu: return "cpu"
            case .gpu: return "gpu"
            case .neuralEngine: return "neuralEngine"
            @unknown default: return "unknown"
            }
        }
    }
}

private struct Results: Codable {
    let schema: Int
    let package: String
    let manifest: String
    let device: Device
    var date: String
    var runs: [Run]

    /// What the tests of other compute units have written on this device of this golden directory, or nothing yet.
    static func opened(for golden: Golden) -> Results {
        let device = Device.current(), date = ISO8601DateFormatter().string(from: Date())
        if let data = try? Data(contentsOf: golden.resultsURL),
            var earlier = try? golden.decoder.decode(Results.self, from: data),
            earlier.schema == golden.manifest.schema, earlier.package == golden.packageDigest,
            earlier.manifest == golden.manifestDigest, earlier.device == device
        {
            earlier.date = date
            return earlier
        }
        return Results(
            schema: golden.manifest.schema, package: golden.packageDigest, manifest: golden.manifestDigest,
            device: device, date: date, runs: [])
    }
}

// MARK: The golden directory

private struct Golden {
    let url: URL
    let manifest: Manifest
    let manifestDigest: String
    let packageDigest: String
    let resultsURL: URL

    init(directory: String, digest: String) throws {
        #if SWIFT_PACKAGE
            let bundle = Bundle.module
        #else
            let bundle = Bundle(for: BundleMarker.self)
        #endif
        guard let place = bundle.url(forResource: "manifest", withExtension: "json", subdirectory: directory) else {
            throw Problem("expected \(directory)/manifest.json in the test bundle, got none; add the folder reference")
        }
        url = place.deletingLastPathComponent()
        let data = try Data(contentsOf: place)
        manifest = try Golden.makeDecoder().decode(Manifest.self, from: data)
        guard manifest.schema == 1 else {
            throw Problem("manifest.json: expected schema 1, got \(manifest.schema); write \(directory) again")
        }
        guard manifest.sha256 == digest else {
            throw Problem("manifest.json is of another package than this file; take both from one \(directory)")
        }
        manifestDigest = hexadecimal(SHA256.hash(data: data))
        packageDigest = try digestOfPackage(at: url.appendingPathComponent("package/\(manifest.package)"))
        guard packageDigest == digest else {
            throw Problem("\(manifest.package): expected sha256 \(digest), got \(packageDigest); copy it again")
        }
        resultsURL = try Golden.resultsDirectory(for: manifest.package).appendingPathComponent("results.json")
    }

    var decoder: JSONDecoder { Golden.makeDecoder() }

    /// A compiled copy of the package, which is the caller's to remove.
    ///
    /// Of the two forms of `compileModel(at:)` this is the synchronous one, since the function is.
    func compiled() throws -> URL {
        try MLModel.compileModel(at: url.appendingPathComponent("package/\(manifest.package)"))
    }

    func write(_ results: Results) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        encoder.nonConformingFloatEncodingStrategy = .convertToString(
            positiveInfinity: "inf", negativeInfinity: "-inf", nan: "nan")
        try encoder.encode(results).write(to: resultsURL, options: .atomic)
    }

    private static func makeDecoder() -> JSONDecoder {
        let decoder = JSONDecoder()
        decoder.nonConformingFloatDecodingStrategy = .convertFromString(
            positiveInfinity: "inf", negativeInfinity: "-inf", nan: "nan")
        return decoder
    }

    /// In the documents, where Xcode and the Files app find it; where a Mac refuses these, in the temporary directory.
    private static func resultsDirectory(for package: String) throws -> URL {
        let manager = FileManager.default
        let bases = manager.urls(for: .documentDirectory, in: .userDomainMask) + [manager.temporaryDirectory]
        for base in bases {
            let directory = base.appendingPathComponent("MobileViTGolden/\(package)", isDirectory: true)
            if (try? manager.createDirectory(at: directory, withIntermediateDirectories: true)) != nil,
                manager.isWritableFile(atPath: directory.path)
            {
                return directory
            }
        }
        throw Problem("expected a directory to write results.json to, got none among \(bases.map(\.path))")
    }
}

private final class BundleMarker {}

private func hexadecimal<Bytes: Sequence>(_ bytes: Bytes) -> String where Bytes.Element == UInt8 {
    bytes.map { String(format: "%02x", $0) }.joined()
}

/// Of each file but Manifest.json, in the order of their paths: path, 0, size in bytes as decimal digits, 0, contents.
private func digestOfPackage(at package: URL) throws -> String {
    let root = package.standardizedFileURL.resolvingSymlinksInPath().pathComponents
    guard let enumerator = FileManager.default.enumerator(at: package, includingPropertiesForKeys: [.isRegularFileKey])
    else {
        throw Problem("expected the package at \(package.path), got nothing to list")
    }
    var files: [(components: [String], url: URL)] = []
    for case let file as URL in enumerator where file.lastPathComponent != "Manifest.json" {
        if try file.resourceValues(forKeys: [.isRegularFileKey]).isRegularFile == true {
            let components = file.standardizedFileURL.resolvingSymlinksInPath().pathComponents
            files.append((Array(components.dropFirst(root.count)), file))
        }
    }
    files.sort { $0.components.lexicographicallyPrecedes($1.components) }
    var hash = SHA256()
    for file in files {
        let data = try Data(contentsOf: file.url, options: .mappedIfSafe)
        hash.update(data: Data("\(file.components.joined(separator: "/"))\0\(data.count)\0".utf8))
        hash.update(data: data)
    }
    return hexadecimal(hash.finalize())
}

// MARK: One function on one compute unit

@available(iOS 16.0, macOS 13.0, *)
private struct FunctionTester {
    let model: MLModel
    let function: Manifest.Function
    let golden: Golden
    let units: String

    func result(of index: Int, into figures: inout Figures) throws -> PictureResult {
        let picture = function.pictures[index]
        let prediction = try model.prediction(from: try input(picture))
        var result = PictureResult(index: index)
        var own = Figures()
        for output in function.outputs {
            guard let feature = prediction.featureValue(for: output.name) else {
                throw Problem("expected an output called \(output.name), got \(prediction.featureNames.sorted())")
            }
            let values = try self.values(of: feature, for: output)
            guard let file = picture.expected[output.name] else {
                throw Problem("manifest.json: expected a file for \(output.name) of \(picture.file), got none")
            }
            let data = try Data(contentsOf: golden.url.appendingPathComponent(file))
            let expected = try Values(data: data, stored: output.stored, count: output.count)
            try own.add(values, expected: expected, for: output, of: golden.manifest)
            if output.inline {
                // a raw DEFLATE stream, as Foundation makes it
                let compressed = try (values.data as NSData).compressed(using: .zlib) as Data
                result.outputs[output.name] = compressed.base64EncodedString()
            } else {
                try write(values, of: output, index: index)
            }
            if output.kind == "probabilities" {
                result.label = try label(of: prediction)
            }
        }
        result.figures = own.values
        figures.merge(own)
        return result
    }

    /// The time of predictions of the first picture, with the making of its pixel buffer left out.
    func latency(loadSeconds: Double) throws -> Latency? {
        guard let first = function.pictures.first, golden.manifest.predictions > 0 else { return nil }
        let provider = try input(first)
        for _ in 0..<golden.manifest.warmUp {
            _ = try model.prediction(from: provider)
        }
        var times: [Double] = []
        for _ in 0..<golden.manifest.predictions {
            let start = DispatchTime.now()
            _ = try model.prediction(from: provider)
            times.append(milliseconds(since: start))
        }
        times.sort()
        let middle = times.count / 2
        let median = times.count % 2 == 1 ? times[middle] : (times[middle - 1] + times[middle]) / 2
        let late = times[min(times.count - 1, times.count * 95 / 100)]
        return Latency(
            loadSeconds: loadSeconds, medianMilliseconds: median, percentile95Milliseconds: late,
            predictions: times.count)
    }

    private func input(_ picture: Manifest.Picture) throws -> MLFeatureProvider {
        let name = golden.manifest.input
        guard let constraint = model.modelDescription.inputDescriptionsByName[name]?.imageConstraint else {
            throw Problem("expected an image input called \(name), got none")
        }
        guard constraint.pixelsWide == function.width, constraint.pixelsHigh == function.height else {
            let size = "\(constraint.pixelsWide)x\(constraint.pixelsHigh)"
            throw Problem("expected an input of \(function.width)x\(function.height) pixels, got one of \(size)")
        }
        let url = golden.url.appendingPathComponent(picture.file)
        let buffer = try pixelBuffer(
            ofPNG: url, width: function.width, height: function.height, digest: picture.rgb)
        return try MLDictionaryFeatureProvider(dictionary: [name: MLFeatureValue(pixelBuffer: buffer)])
    }

    private func label(of prediction: MLFeatureProvider) throws -> String {
        guard let name = model.modelDescription.predictedFeatureName,
            let feature = prediction.featureValue(for: name), feature.type == .string
        else {
            throw Problem("expected a class name among the outputs, got \(prediction.featureNames.sorted())")
        }
        return feature.stringValue
    }

    private func values(of feature: MLFeatureValue, for output: Manifest.Output) throws -> Values {
        switch (output.kind, feature.type) {
        case ("probabilities", .dictionary):
            // Core ML has them by name, in no order; files have them in the order of the classes
            let probabilities = feature.dictionaryValue
            guard probabilities.count == golden.manifest.classes.count else {
                throw Problem("expected \(golden.manifest.classes.count) classes, got \(probabilities.count)")
            }
            return .real(
                try golden.manifest.classes.map { name -> Float in
                    guard let probability = probabilities[name] else {
                        throw Problem("expected a probability of \(name), got none")
                    }
                    return probability.floatValue
                })
        case ("array", .multiArray):
            guard let array = feature.multiArrayValue else { break }
            return try Values(array, for: output)
        case ("image", .image):
            guard let buffer = feature.imageBufferValue else { break }
            return try Values(gray: buffer, for: output)
        default:
            break
        }
        throw Problem("output \(output.name): expected \(output.kind), got feature type \(feature.type.rawValue)")
    }

    private func write(_ values: Values, of output: Manifest.Output, index: Int) throws {
        let directory = golden.resultsURL.deletingLastPathComponent()
            .appendingPathComponent("outputs/\(units)/\(function.name)", isDirectory: true)
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
        let suffix = output.stored == "int32" ? "i32" : "f32"
        let name = String(format: "%03d", index) + "-\(output.name).\(suffix)"
        try values.data.write(to: directory.appendingPathComponent(name), options: .atomic)
    }
}

private func milliseconds(since start: DispatchTime) -> Double {
    Double(DispatchTime.now().uptimeNanoseconds - start.uptimeNanoseconds) / 1e6
}

/// A buffer with exactly the pixels of a PNG: nothing is resized, and no colours are matched.
///
/// Their digest is checked, since a decoder may do either.
private func pixelBuffer(ofPNG url: URL, width: Int, height: Int, digest: String) throws -> CVPixelBuffer {
    guard let source = CGImageSourceCreateWithURL(url as CFURL, nil),
        let decoded = CGImageSourceCreateImageAtIndex(source, 0, nil)
    else {
        throw Problem("expected a PNG at \(url.path), got none that can be read")
    }
    guard decoded.width == width, decoded.height == height else {
        throw Problem("\(url.lastPathComponent): expected \(width)x\(height), got \(decoded.width)x\(decoded.height)")
    }
    // called sRGB on both sides, whatever the decoder took it for, so that drawing does not change a value
    guard let space = CGColorSpace(name: CGColorSpace.sRGB), let image = decoded.copy(colorSpace: space) else {
        throw Problem("\(url.lastPathComponent): expected RGB, got another colour space")
    }
    let attributes: [CFString: Any] = [
        kCVPixelBufferCGImageCompatibilityKey: true,
        kCVPixelBufferCGBitmapContextCompatibilityKey: true,
        kCVPixelBufferIOSurfacePropertiesKey: [CFString: Any](),
    ]
    var created: CVPixelBuffer?
    let status = CVPixelBufferCreate(
        kCFAllocatorDefault, width, height, kCVPixelFormatType_32BGRA, attributes as CFDictionary, &created)
    guard status == kCVReturnSuccess, let buffer = created else {
        throw Problem("expected a pixel buffer of \(width)x\(height), got error \(status)")
    }
    CVPixelBufferLockBaseAddress(buffer, [])
    defer { CVPixelBufferUnlockBaseAddress(buffer, []) }
    let stride = CVPixelBufferGetBytesPerRow(buffer)
    guard let base = CVPixelBufferGetBaseAddress(buffer),
        let context = CGContext(
            data: base, width: width, height: height, bitsPerComponent: 8, bytesPerRow: stride, space: space,
            bitmapInfo: CGImageAlphaInfo.noneSkipFirst.rawValue | CGBitmapInfo.byteOrder32Little.rawValue)
    else {
        throw Problem("expected to draw into a pixel buffer of \(width)x\(height), got no context")
    }
    context.interpolationQuality = .none
    context.draw(image, in: CGRect(x: 0, y: 0, width: width, height: height))
    var rgb: [UInt8] = []
    rgb.reserveCapacity(3 * width * height)
    for y in 0..<height {
        for x in 0..<width {
            let pixel = base + y * stride + 4 * x
            for channel in [2, 1, 0] {  // of B, G, R, A
                rgb.append(pixel.load(fromByteOffset: channel, as: UInt8.self))
            }
        }
    }
    guard hexadecimal(SHA256.hash(data: rgb)) == digest else {
        throw Problem("\(url.lastPathComponent): expected the pixels PyTorch saw, got others; the decoder changed them")
    }
    return buffer
}

// MARK: Values

/// An output as files have it: 32 bits each, little-endian as all of Apple's processors are, the last axis fastest.
private enum Values {
    case real([Float])
    case classes([Int32])

    init(data: Data, stored: String, count: Int) throws {
        guard data.count == 4 * count else {
            throw Problem("expected \(4 * count) bytes of expected values, got \(data.count)")
        }
        self = data.withUnsafeBytes { (bytes: UnsafeRawBufferPointer) -> Values in
            let offsets = Swift.stride(from: 0, to: 4 * count, by: 4)
            if stored == "int32" {
                return .classes(offsets.map { bytes.loadUnaligned(fromByteOffset: $0, as: Int32.self) })
            }
            return .real(offsets.map { bytes.loadUnaligned(fromByteOffset: $0, as: Float.self) })
        }
    }

    @available(iOS 16.0, macOS 13.0, *)
    init(_ array: MLMultiArray, for output: Manifest.Output) throws {
        let shape = array.shape.map(\.intValue)
        guard shape == output.shape else {
            throw Problem("output \(output.name): expected shape \(output.shape), got \(shape)")
        }
        switch (output.stored, array.dataType) {
        case ("int32", .int32):
            self = .classes(
                try elements(of: array, bytes: 4) { $0.loadUnaligned(fromByteOffset: $1, as: Int32.self) })
        case ("float32", .float32):
            self = .real(try elements(of: array, bytes: 4) { $0.loadUnaligned(fromByteOffset: $1, as: Float.self) })
        case ("float32", .float16):
            self = .real(
                try elements(of: array, bytes: 2) {
                    single(fromHalf: $0.loadUnaligned(fromByteOffset: $1, as: UInt16.self))
                })
        case ("float32", .double):
            self = .real(
                try elements(of: array, bytes: 8) { Float($0.loadUnaligned(fromByteOffset: $1, as: Double.self)) })
        default:
            throw Problem("output \(output.name): expected \(output.stored), got data type \(array.dataType.rawValue)")
        }
    }

    /// The values of a grayscale picture with 8 bits a pixel, whose rows may be longer than it is wide.
    init(gray buffer: CVPixelBuffer, for output: Manifest.Output) throws {
        let width = CVPixelBufferGetWidth(buffer), height = CVPixelBufferGetHeight(buffer)
        guard [height, width] == output.shape else {
            throw Problem("output \(output.name): expected rows and columns \(output.shape), got \([height, width])")
        }
        guard CVPixelBufferGetPixelFormatType(buffer) == kCVPixelFormatType_OneComponent8 else {
            throw Problem("output \(output.name): expected a grayscale picture of 8 bits, got another format")
        }
        CVPixelBufferLockBaseAddress(buffer, .readOnly)
        defer { CVPixelBufferUnlockBaseAddress(buffer, .readOnly) }
        guard let base = CVPixelBufferGetBaseAddress(buffer) else {
            throw Problem("output \(output.name): expected pixels, got none")
        }
        let stride = CVPixelBufferGetBytesPerRow(buffer)
        var values: [Int32] = []
        values.reserveCapacity(width * height)
        for y in 0..<height {
            for x in 0..<width {
                values.append(Int32(base.load(fromByteOffset: y * stride + x, as: UInt8.self)))
            }
        }
        self = .classes(values)
    }

    var data: Data {
        switch self {
        case .real(let values): return values.withUnsafeBufferPointer { Data(buffer: $0) }
        case .classes(let values): return values.withUnsafeBufferPointer { Data(buffer: $0) }
        }
    }
}

/// The elements of an array, the last axis fastest. Its strides, in elements, may leave gaps between rows.
@available(iOS 16.0, macOS 13.0, *)
private func elements<Value>(
    of array: MLMultiArray, bytes size: Int, _ load: (UnsafeRawBufferPointer, Int) -> Value
) throws -> [Value] {
    let shape = array.shape.map(\.intValue), strides = array.strides.map(\.intValue)
    let count = shape.reduce(1, *)
    guard count > 0 else { return [] }
    let last = zip(shape, strides).reduce(0) { $0 + ($1.0 - 1) * $1.1 }
    return try array.withUnsafeBytes { (bytes: UnsafeRawBufferPointer) throws -> [Value] in
        guard last >= 0, (last + 1) * size <= bytes.count else {
            throw Problem("expected \((last + 1) * size) bytes of an array with strides \(strides), got \(bytes.count)")
        }
        var values: [Value] = []
        values.reserveCapacity(count)
        var index = [Int](repeating: 0, count: shape.count)
        var place = 0
        for _ in 0..<count {
            values.append(load(bytes, place * size))
            var axis = shape.count - 1
            while axis >= 0 {
                index[axis] += 1
                place += strides[axis]
                if index[axis] < shape[axis] { break }
                place -= shape[axis] * strides[axis]
                index[axis] = 0
                axis -= 1
            }
        }
        return values
    }
}

/// IEEE half precision; Swift's Float16 does not exist on Macs with Intel's processors.
private func single(fromHalf bits: UInt16) -> Float {
    let sign: Float = bits & 0x8000 == 0 ? 1 : -1
    let exponent = Int((bits >> 10) & 0x1F), fraction = Float(bits & 0x3FF)
    switch exponent {
    case 0: return sign * fraction * Float(sign: .plus, exponent: -24, significand: 1)
    case 31: return fraction == 0 ? sign * Float.infinity : Float.nan
    default: return sign * Float(sign: .plus, exponent: exponent - 15, significand: 1 + fraction / 1024)
    }
}

// MARK: Figures

/// Sums of squares of one output, and the SNR of the worst picture, in dB.
private struct Signal {
    var signal = 0.0
    var noise = 0.0
    var product = 0.0
    var power = 0.0
    var worst = Double.infinity

    static func decibels(_ signal: Double, _ noise: Double) -> Double {
        guard signal.isFinite, noise.isFinite else { return .nan }
        return noise == 0 ? .infinity : 10 * log10(signal / noise)
    }

    mutating func add(_ got: [Double], expected: [Double]) {
        var one = Signal()
        for (ours, theirs) in zip(expected, got) {
            one.signal += ours * ours
            one.noise += (ours - theirs) * (ours - theirs)
            one.product += ours * theirs
            one.power += theirs * theirs
        }
        one.worst = Signal.decibels(one.signal, one.noise)
        merge(one)
    }

    mutating func merge(_ other: Signal) {
        signal += other.signal
        noise += other.noise
        product += other.product
        power += other.power
        worst = lesser(worst, other.worst)
    }
}

/// The less of two figures, where what is no number is less than any.
private func lesser(_ one: Double, _ other: Double) -> Double {
    one.isNaN || other.isNaN ? .nan : min(one, other)
}

/// Figures by the names of gates, of any number of pictures: those that a few lines can compute.
private struct Figures {
    var signals: [String: Signal] = [:]
    var pictures = 0
    var sameFirst = 0
    var ranked = false
    var pixels = 0
    var samePixels = 0

    var values: [String: Double] {
        var found: [String: Double] = [:]
        if !signals.isEmpty {
            found["snr"] = signals.values.map { Signal.decibels($0.signal, $0.noise) }.reduce(Double.infinity, lesser)
            found["worst-snr"] = signals.values.map(\.worst).reduce(Double.infinity, lesser)
            found["cosine"] = signals.values
                .map { $0.product / ($0.signal.squareRoot() * $0.power.squareRoot()) }
                .reduce(Double.infinity, lesser)
        }
        if ranked && pictures > 0 {
            found["top1"] = Double(sameFirst) / Double(pictures)
        }
        if pixels > 0 {
            found["pixels"] = Double(samePixels) / Double(pixels)
        }
        return found
    }

    /// One picture's values of one output.
    mutating func add(
        _ got: Values, expected: Values, for output: Manifest.Output, of manifest: Manifest
    ) throws {
        switch (got, expected) {
        case (.classes(let got), .classes(let expected)) where got.count == expected.count:
            pixels += expected.count
            samePixels += zip(got, expected).filter { $0 == $1 }.count
        case (.real(let got), .real(let expected)) where got.count == expected.count:
            var signal = Signal()
            if output.kind == "probabilities" {
                pictures += 1
                ranked = true
                sameFirst += first(got) == first(expected) ? 1 : 0
                signal.add(
                    centredLogarithms(got, atLeast: manifest.leastProbability),
                    expected: centredLogarithms(expected, atLeast: manifest.leastProbability))
            } else {
                signal.add(got.map(Double.init), expected: expected.map(Double.init))
            }
            signals[output.name, default: Signal()].merge(signal)
        default:
            throw Problem("output \(output.name): expected values of one kind and number on both sides")
        }
        // of logits and probabilities of pixels the classes are left to --against
    }

    mutating func merge(_ other: Figures) {
        for (name, signal) in other.signals {
            signals[name, default: Signal()].merge(signal)
        }
        pictures += other.pictures
        sameFirst += other.sameFirst
        ranked = ranked || other.ranked
        pixels += other.pixels
        samePixels += other.samePixels
    }

    /// The index of the greatest, -1 if there is a value that is no number.
    private func first(_ values: [Float]) -> Int {
        guard values.allSatisfy({ $0.isFinite }) else { return -1 }
        return values.indices.max { values[$0] < values[$1] } ?? -1
    }

    /// Logits but for a constant, and for classes too improbable for half precision.
    private func centredLogarithms(_ probabilities: [Float], atLeast least: Double) -> [Double] {
        let logarithms = probabilities.map { $0.isNaN ? Double.nan : log(max(Double($0), least)) }
        let mean = logarithms.reduce(0, +) / Double(max(logarithms.count, 1))
        return logarithms.map { $0 - mean }
    }
}
